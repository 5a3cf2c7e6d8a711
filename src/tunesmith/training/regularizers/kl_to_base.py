"""Divergence from the start: lambda times the mean over scored tokens of KL(start || policy), over the whole vocabulary.

The start's distribution is the teacher, as in learning without forgetting (Li & Hoiem, 2017, arXiv 1606.09282), without temperature.
It is held at the tokens that are trained on, and nowhere else: beside other text (mixing) it keeps more.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.training.companions import Companion

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.model.policy import Policy
    from tunesmith.training.batch import FlatBatch
    from tunesmith.training.masters import Masters


def make(*, weight: Annotated[float, Field(gt=0)] = 0.1) -> Companion:
    """Return the term with lambda = `weight`. At every step the model runs once more, without gradients, as it began."""
    return _Divergence(weight)


class _Divergence(Companion):
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, policy: "Policy", masters: "Masters", steps: int) -> str:
        import torch

        from tunesmith.model.reference import Reference

        if not policy.trunk:
            raise InputError(
                "regularizer kl_to_base needs the hidden states before the output layer, which this model's code does not give; take "
                "decay_to_base, which looks at weights alone."
            )
        self.reference = Reference(policy)
        policy.keep_hidden = True
        device = next(policy.parameters()).device
        self.sums = (
            torch.zeros((), device=device),
            torch.zeros((), device=device),
        )  # of the divergences, of their weights
        sentence = "kl_to_base runs the model once more at every step, without gradients, and compares all logits"
        return f"{sentence}; {self.reference.sentence}"

    def loss(self, policy: "Policy", batch: "FlatBatch") -> "Tensor":
        from tunesmith.model.divergence import kl_from_base
        from tunesmith.model.head import folded

        hidden = policy.take_hidden()
        assert hidden is not None
        base, base_head = self.reference.hidden(batch), self.reference.head()
        head = policy.head
        kl = kl_from_base(*folded(hidden, head), *folded(base, base_head), head.softcap)
        found = (kl * batch.weights).sum()
        total, targets = self.sums
        total += found.detach()
        targets += batch.weights.sum()
        return self.weight * found

    def after_step(self, step: int, rate: float, skipped: "Tensor") -> dict[str, Any]:
        total, targets = self.sums
        return {"kl_to_base": total / targets}

    def state(self) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        return {}, {"start": self.reference.checksum()}

    def load(self, tensors: "dict[str, Tensor]", facts: dict[str, Any]) -> None:
        if facts["start"] != self.reference.checksum():
            raise InputError(
                "regularizer kl_to_base: the model that the run began with has changed since; restore it or begin a new run."
            )
