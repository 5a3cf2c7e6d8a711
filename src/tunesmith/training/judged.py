"""Objectives over verdicts: each answer by itself was found good or bad, and its reward is measured from one baseline of the step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.evaluation import statistics
from tunesmith.model.policy import Policy
from tunesmith.training.batch import FlatBatch, Indices, microbatches
from tunesmith.training.objective import Metrics, Objective, Totals, looking, metric, summed
from tunesmith.training.objectives._answers import Side, Verdicts
from tunesmith.training.parallel import ALONE, World

Numbers = npt.NDArray[np.float64]
FACTS = ("rewards_chosen", "logps_chosen", "rewards_rejected", "logps_rejected")


class Judged(Objective):
    """A mean over answers of what `function` says of them.

    Where the module has mismatched answers, a row's second is another row's answer to its prompt: these run first, without
    gradients, and the baseline is theirs. Otherwise it is of the answers' own rewards, which a first pass finds where the step is
    in several parts. A module without a baseline measures from 0.
    """

    def __init__(self, module: ModuleType, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.mismatched: bool = getattr(module, "mismatched", False)
        self.baseline: Callable[[Verdicts, Side], Tensor] | None = getattr(module, "baseline", None)
        self.sums = (torch.zeros(6),)
        self._baseline: Tensor | None = None

    def batches(self, examples: Examples, rows: Indices, capacity: int, policy: Policy) -> Iterator[FlatBatch]:
        """Yield the micro-batches of a step over `rows`: those of mismatched answers first, which are not trained."""
        members = examples.members(rows)
        assert examples.answer is not None
        own = examples.answer[members] == 0
        for numbers, trained in ((members[~own], False), (members[own], True)):
            for batch in microbatches(examples, numbers, capacity, policy.links, policy.multiple):
                yield replace(batch, trained=trained)

    def first(self, policy: Policy, batches: Sequence[FlatBatch], totals: Totals, world: World = ALONE) -> None:
        """Find what the step's rewards are measured from."""
        device = next(policy.parameters()).device
        self.sums, self._baseline = tuple(s.to(device) for s in self.sums), None
        asked = [batch for batch in batches if batch.trained != self.mismatched]
        if self.baseline is None or (not self.mismatched and world.size == 1 and len(asked) == 1):
            return  # there is nothing to find, or the one forward tells
        with looking(policy, as_trained=not self.mismatched):
            parts = [_numbers(policy, batch.to(device)) for batch in asked]
        if world.size > 1:
            parts = [part for own in world.gather([part.cpu() for part in parts]) for part in own]
        self._baseline = self._measured(torch.cat(parts, 1).to(device))

    def _measured(self, numbers: Tensor) -> Tensor:
        """Return the baseline, (), from what `_numbers` says of all the step's answers that it is made of."""
        side, good = Side(*numbers[:3]), numbers[3] > 0
        none = side.logps.new_zeros(())
        return none if self.baseline is None else self.baseline(Verdicts(side, good, none), side).detach()

    def loss(self, policy: Policy, batch: FlatBatch, totals: Totals) -> Tensor:
        """Return the batch's share of the mean over the step's answers."""
        assert batch.answers is not None
        side, good = summed(policy(batch), batch), batch.answers.values > 0
        baseline = self._baseline
        if baseline is None:
            baseline = self._measured(torch.stack([*side, good.to(side.logps.dtype)]).detach())
            self._baseline = None if self.baseline is None else baseline
        losses, rewards = self.function(Verdicts(side, good, baseline))
        self._note(side, good, rewards)
        return losses.sum() / totals.rows  # type: ignore[no-any-return]

    @torch.no_grad()
    def _note(self, side: Side, good: Tensor, rewards: Tensor) -> None:
        seen = (torch.ones_like(rewards), rewards, side.logps)
        each = [x.where(which, 0.0).sum() for which in (good, ~good) for x in seen]
        self.sums[0].add_(torch.stack(each).float())

    def facts(self) -> dict[str, Any]:
        """Return the mean reward and log-prob of the step's good answers and of its bad ones (0 where it has none), the rewards'
        distance, and what they were measured from."""
        sums = self.sums[0].clone().view(2, 3)
        means = (sums[:, 1:] / sums[:, :1].clamp(min=1)).flatten()
        found = dict(zip(FACTS, means, strict=True))
        margin = {"rewards_margins": found["rewards_chosen"] - found["rewards_rejected"]}
        return {**found, **margin} | ({} if self._baseline is None else {"baseline": self._baseline})

    def measure(self, policy: Policy, examples: Examples, tokens: int, world: World = ALONE) -> Metrics:
        """Return "validation_loss"; "verdict_accuracy", how often a good answer's reward is above that of the baseline and a bad one's
        is not; and, where there are both, "reward_margin", how far the two kinds' mean rewards are apart; with intervals over rows."""
        device = next(policy.parameters()).device
        batches = list(self.batches(examples, np.arange(examples.rows), tokens, policy))
        with looking(policy):
            mine = [(_numbers(policy, b.to(device)).cpu(), b) for b in batches[world.rank :: world.size]]
        told = [one for part in world.gather([(n, b.trained, _rows(b)) for n, b in mine]) for one in part]
        own = torch.cat([numbers for numbers, trained, _ in told if trained], 1)
        others = [numbers for numbers, trained, _ in told if not trained]
        with torch.no_grad():
            baseline = self._measured(torch.cat(others, 1) if self.mismatched else own)
            good = own[3] > 0
            losses, rewards = self.function(Verdicts(Side(*own[:3]), good, baseline))
            at = Side(baseline[None], baseline.new_zeros(1), baseline.new_ones(1))
            right = (rewards > self.function(Verdicts(at, good[:1], baseline))[1]) == good
        order = np.argsort(np.concatenate([rows for _, trained, rows in told if trained]), kind="stable")
        loss, right, reward = (x.double().numpy()[order] for x in (losses, right, rewards))
        found = {"validation_loss": metric(loss), "verdict_accuracy": metric(right)}
        kinds = [reward[good.numpy()[order] == kind] for kind in (True, False)]
        return found if min(map(len, kinds)) == 0 else {**found, "reward_margin": _apart(*kinds)}


def _apart(above: Numbers, below: Numbers) -> dict[str, Any]:
    """Return how far the means of two kinds of numbers are apart, with its 95% interval."""
    low, high = statistics.mean_of_means_interval([above, -below])
    value = float(above.mean() - below.mean())
    return {"value": value, "n": len(above) + len(below), "low": 2 * low, "high": 2 * high}


def _numbers(policy: Policy, batch: FlatBatch) -> Tensor:
    """Return logps, reference, lengths and verdict (above 0: good) of a batch's answers, (4,A), without gradients."""
    assert batch.answers is not None
    side = summed(policy(batch), batch)
    return torch.stack([*side, torch.nan_to_num(batch.answers.values).to(side.logps.dtype)]).detach()


def _rows(batch: FlatBatch) -> Indices:
    assert batch.answers is not None
    return batch.answers.rows
