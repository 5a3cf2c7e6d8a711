"""What the losses over whole answers see: log-probabilities summed over each answer's tokens, by pairs, by lists or by verdicts."""

from typing import NamedTuple

from torch import Tensor


class Side(NamedTuple):
    """Some answers, A of them. logps (A,): log p of all tokens of an answer, summed, in nats, with gradients; reference (A,): the same
    under the reference, without (zeros where an objective has none); lengths (A,) float: how many tokens that is."""

    logps: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def ratios(self) -> Tensor:
        """log (p / p_reference) of each answer, (A,): what DPO's beta makes a reward of."""
        return self.logps - self.reference


class Pairs(NamedTuple):
    """P pairs of answers to one prompt each: the one preferred, the other, and by how much where the data scores them (else 0), (P,)."""

    chosen: Side
    rejected: Side
    margins: Tensor


class Lists(NamedTuple):
    """G ranked lists. place (G,K) int64: the answers of each in `answers`, the best first; real (G,K) bool: False where a list is shorter
    than K (place is 0 there); values (G,K): their scores in the data, NaN where there are none."""

    answers: Side
    place: Tensor
    real: Tensor
    values: Tensor


class Verdicts(NamedTuple):
    """A answers, each found good or not, (A,) bool, and what the step's rewards are measured from, () (see `baseline` of kto and bco)."""

    answers: Side
    good: Tensor
    baseline: Tensor
