"""Objectives that compare the answers to a prompt: pairs of them, or ranked lists."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.errors import InputError
from tunesmith.model.policy import Policy
from tunesmith.model.squares import log_squares
from tunesmith.training.answers import copies
from tunesmith.training.batch import FlatBatch, Indices
from tunesmith.training.objective import Metrics, Objective, Totals, looking, margin_metric, metric, of, right, summed
from tunesmith.training.objectives import _common
from tunesmith.training.objectives._answers import Lists, Pairs, Side
from tunesmith.training.parallel import ALONE, World

FACTS = (
    "rewards_chosen",
    "rewards_rejected",
    "rewards_margins",
    "rewards_accuracies",
    "logps_chosen",
    "logps_rejected",
)


class Found(NamedTuple):
    """What a forward found of a batch: what the loss sees; how much each of its P pairs (or lists) counts in means over rows, (P,);
    what that is multiplied by in the loss, (P,) or 1; the row of each, (P,) on the host; and the targets' log-probs (N,)."""

    given: Any
    weight: Tensor
    sure: Tensor | float
    rows: Indices
    logps: Tensor


class Whole(NamedTuple):
    """What a first pass found of the whole step's loss: rows (P,), the rows of this process's pairs, ascending, on the host; slopes
    (2,P), d loss / d logp of the pairs' better and other answers; each (), the loss divided by the number of all processes' pairs;
    used (P,), how many of its pairs a row has had its share of, where the row begins."""

    rows: Indices
    slopes: Tensor
    each: Tensor
    used: Indices

    def share(self, found: Found) -> Tensor:
        """Return a batch's share of the loss, (), with its gradients: a row's pairs are always in the same order."""
        begin, end = (np.searchsorted(self.rows, found.rows, side=side) for side in ("left", "right"))
        place = begin + (self.used[begin] + copies(found.rows)) % (end - begin)  # a step begun anew goes round
        np.add.at(self.used, begin, 1)
        slopes = self.slopes[:, torch.from_numpy(place).to(self.slopes.device)]
        along = (slopes * torch.stack([found.given.chosen.logps, found.given.rejected.logps])).sum()
        return along - along.detach() + self.each * len(found.rows)


class Compared(Objective):
    """A mean over rows of what `function` says of their answers.

    sft adds so much of the mean negative log-likelihood of the best answers' tokens; weighted and desensitise: objectives/_common.py.
    """

    def __init__(
        self,
        module: ModuleType,
        function: Callable[..., Any],
        *,
        sft: float = 0.0,
        weighted: bool = False,
        desensitise: float | None = None,
    ) -> None:
        super().__init__(function)
        self.lists, self.whole_step = module.compares == "lists", getattr(module, "whole_step", False)
        self.sft, self.weighted, self.desensitise = sft, weighted, desensitise
        self.sums = (torch.zeros(1 + len(FACTS)),)
        self._whole: Whole | None = None

    def first(self, policy: Policy, batches: Sequence[FlatBatch], totals: Totals, world: World = ALONE) -> None:
        """Find the loss and its slopes, where it is no sum over pairs and the step is in several parts."""
        device = next(policy.parameters()).device
        self.sums = tuple(s.to(device) for s in self.sums)
        self._whole = None
        if not self.whole_step or (world.size == 1 and len(batches) == 1):
            return
        with looking(policy, as_trained=True):
            found = [self._found(policy, batch.to(device)) for batch in batches]
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(f.rows for f in found)])
        order = np.argsort(rows, kind="stable")
        numbers = torch.cat([torch.zeros(8, 0, device=device), *map(_numbers, found)], 1)[:, torch.from_numpy(order)]
        parts = [numbers] if world.size == 1 else world.gather(numbers.cpu())
        pairs, weight = _pairs(torch.cat(parts, 1).to(device))
        logps = [side.logps.requires_grad_() for side in (pairs.chosen, pairs.rejected)]
        value = (self.function(pairs)[0] * weight).sum() / totals.rows
        slopes = torch.stack(torch.autograd.grad(value, logps))
        begin = sum(part.shape[1] for part in parts[: world.rank])
        self._whole = Whole(rows[order], slopes[:, begin : begin + len(rows)], value.detach() / len(weight), 0 * rows)

    def loss(self, policy: Policy, batch: FlatBatch, totals: Totals) -> Tensor:
        """Return the batch's share of the mean over the step's rows."""
        found = self._found(policy, batch)
        losses, *rewards = self.function(found.given)
        self._note(found, rewards)
        value: Tensor = (losses * found.weight * found.sure).sum() / totals.rows
        if self._whole is not None:
            value = self._whole.share(found)
        return value + self.sft * _imitated(found.logps, batch).sum() / totals.best if self.sft else value

    def _found(self, policy: Policy, batch: FlatBatch) -> Found:
        answers = batch.answers
        assert answers is not None
        kept, policy.keep_hidden = policy.keep_hidden, policy.keep_hidden or self.weighted
        logps = policy(batch)
        policy.keep_hidden = kept
        factor = None
        if self.desensitise is not None:
            example = torch.from_numpy(batch.target_example).to(logps.device)
            factor = _common.desensitised(answers.of_target, example, answers.group, self.desensitise)
        side = summed(logps, batch, factor)
        if self.lists:
            return Found(lists_of(side, batch), logps.new_ones(len(answers.rows)), 1.0, answers.rows, logps)
        pairs = Pairs(of(side, answers.first), of(side, answers.second), answers.margin)
        return Found(pairs, answers.weight, self._sure(policy, logps, batch), answers.pair_rows, logps)

    def _sure(self, policy: Policy, logps: Tensor, batch: FlatBatch) -> Tensor | float:
        """Return how likely the policy itself is to write each pair, (P,), where that is asked for."""
        if not self.weighted:
            return 1.0
        hidden, answers = policy.take_hidden(leave=policy.keep_hidden), batch.answers
        assert answers is not None
        if hidden is None:
            raise InputError(
                "objective.weighted needs the hidden states before the output layer, which this model's code does not give; set "
                "objective.weighted: false."
            )
        squares = log_squares(hidden.detach(), policy.head)
        sure = _common.confidence(logps, squares, answers.of_target, len(answers.group))
        return sure[answers.first] * sure[answers.second]

    @torch.no_grad()
    def _note(self, found: Found, rewards: Sequence[Tensor]) -> None:
        """Add to the sums what FACTS names; the pairs of a row make up one."""
        if self.lists:
            given = found.given
            (chosen, rejected), (better, worse) = (
                _ends(given, x) for x in (rewards[0], given.answers.logps[given.place])
            )
        else:
            (chosen, rejected), better, worse = rewards, found.given.chosen.logps, found.given.rejected.logps
        higher = (chosen > rejected).float()  # as TRL logs it; nothing else is right of a tie
        each = (torch.ones_like(higher), chosen, rejected, chosen - rejected, higher, better, worse)
        self.sums[0].add_(torch.stack([(found.weight * x).sum() for x in each]).float())

    def facts(self) -> dict[str, Any]:
        """Return the means over the step's rows of what FACTS names."""
        total, *sums = self.sums[0].clone()
        return {name: s / total.clamp(min=1e-9) for name, s in zip(FACTS, sums, strict=True)}

    def measure(self, policy: Policy, examples: Examples, tokens: int, world: World = ALONE) -> Metrics:
        """Return "validation_loss", "preference_accuracy" (how often the better answer has the higher reward) and "reward_margin"."""
        device = next(policy.parameters()).device
        batches = list(self.batches(examples, np.arange(examples.rows), tokens, policy))
        shared = ALONE if self.whole_step else world  # what is no sum is seen whole by each process
        with looking(policy):
            mine = [b.to(device) for b in batches[shared.rank :: shared.size]]
            found = [self._found(policy, b) for b in mine]
            imitated = [_imitated(f.logps, b) for f, b in zip(found, mine, strict=True)] if self.sft else []
            if self.whole_step:
                pairs, weight = _pairs(torch.cat([_numbers(f) for f in found], 1))
                rows = np.concatenate([f.rows for f in found])
                found = [Found(pairs, weight, 1.0, rows, weight)]
            results = [(f, *self.function(f.given)) for f in found]
        sums = np.zeros((3, examples.rows))
        share = self.sft * examples.rows / self.totals(examples, np.arange(examples.rows)).best
        for nll, batch in zip(imitated, mine, strict=False):  # none without the term
            assert batch.answers is not None
            np.add.at(sums[0], batch.answers.rows, share * nll.double().cpu().numpy())
        for one, losses, *rewards in results:
            chosen, rejected = _ends(one.given, rewards[0]) if self.lists else rewards
            each = (losses * one.sure, right(chosen - rejected), chosen - rejected)
            for into, x in zip(sums, each, strict=True):
                np.add.at(into, one.rows, (x * one.weight).double().cpu().numpy())
        shared.sum_([torch.from_numpy(sums)])
        loss, accuracy, margin = sums
        return {
            "validation_loss": metric(loss), "preference_accuracy": metric(accuracy), "reward_margin": margin_metric(margin)
        }  # fmt: skip


def lists_of(side: Side, batch: FlatBatch) -> Lists:
    """Return the batch's answers as ranked lists, one for each row."""
    answers = batch.answers
    assert answers is not None
    counts = answers.counts
    within = torch.arange(answers.most, device=counts.device)[None]
    real = within < counts[:, None]
    place = torch.where(real, (counts.cumsum(0) - counts)[:, None] + within, 0)
    return Lists(side, place, real, answers.values[place].masked_fill(~real, float("nan")))


def _ends(lists: Lists, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (G,K) of each list's best and of its worst answer, (G,) each."""
    return x[:, 0], x.gather(1, lists.real.sum(1, keepdim=True) - 1)[:, 0]


def _imitated(logps: Tensor, batch: FlatBatch) -> Tensor:
    """Return -log p of each row's best answer, summed over its tokens, (G,)."""
    answers = batch.answers
    assert answers is not None
    group = answers.group
    best = torch.cat([torch.ones_like(group[:1], dtype=torch.bool), group[1:] != group[:-1]])[answers.of_target]
    return logps.new_zeros(len(answers.rows)).index_add(0, group[answers.of_target], torch.where(best, -logps, 0.0))


def _numbers(found: Found) -> Tensor:
    """Return a batch's pairs as numbers, (8,P), for `_pairs`."""
    return torch.stack(
        [*found.given.chosen, *found.given.rejected, found.given.margins, found.weight * found.sure]
    ).detach()


def _pairs(numbers: Tensor) -> tuple[Pairs, Tensor]:
    """Return the pairs and what each counts in the loss, (P,)."""
    return Pairs(Side(*numbers[:3]), Side(*numbers[3:6]), numbers[6]), numbers[7]
