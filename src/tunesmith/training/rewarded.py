"""Objectives of reward models: what their losses say of the scores of answers, pair by pair, list by list, or each for itself."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.model.policy import Policy
from tunesmith.model.reward import RewardPolicy
from tunesmith.training.batch import FlatBatch, Indices
from tunesmith.training.compared import lists_of
from tunesmith.training.objective import Metrics, Objective, Totals, looking, margin_metric, metric, right
from tunesmith.training.objectives._answers import Side
from tunesmith.training.objectives._scores import Labelled, ScorePairs
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.reward_rows import LABEL

FACTS = ("rewards_chosen", "rewards_rejected", "rewards_margins", "rewards_accuracies")


class Found(NamedTuple):
    """What a forward found of a batch: the losses (P,) of its pairs, lists or answers; how much each counts in means over rows, (P,); the
    row of each, (P,) on the host; combined scores of the better and of the other answer, (P,) (of answers alone: their own, and 0); and
    for each attribute whether its scores agree with the data, (P,C), NaN where that says nothing."""

    losses: Tensor
    weight: Tensor
    rows: Indices
    chosen: Tensor
    rejected: Tensor
    right: Tensor


class Rewarded(Objective):
    """A mean over rows of what `function` says of their answers' scores."""

    def __init__(self, module: ModuleType, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.compares: str = module.compares
        self.sums = (torch.zeros(1 + len(FACTS)),)

    def unknowing(self, examples: Examples) -> float:
        """Return the square of the largest rating, where those are learnt: a new head scores everything 0."""
        ratings = (
            [v for name, v in examples.constants.items() if name.startswith(LABEL)]
            if self.compares == "answers"
            else []
        )
        return max((float(np.nanmax(v**2)) for v in ratings if not np.isnan(v).all()), default=0.0)

    def first(self, policy: Policy, batches: Sequence[FlatBatch], totals: Totals, world: World = ALONE) -> None:
        """Put the sums where the policy is."""
        self.sums = tuple(s.to(next(policy.parameters()).device) for s in self.sums)

    def loss(self, policy: Policy, batch: FlatBatch, totals: Totals) -> Tensor:
        """Return the batch's share of the mean over the step's rows; over its answers where nothing is compared."""
        found = self._found(policy, batch)
        with torch.no_grad():
            margins = found.chosen - found.rejected
            each = (torch.ones_like(margins), found.chosen, found.rejected, margins, right(margins))
            self.sums[0].add_(torch.stack([(found.weight * x).sum() for x in each]).float())
        if self.compares == "answers":
            return found.losses.sum() / totals.scored  # each answer has one scored token, its last
        return (found.losses * found.weight).sum() / totals.rows

    def _found(self, policy: Policy, batch: FlatBatch) -> Found:
        answers = batch.answers
        assert answers is not None
        assert isinstance(policy, RewardPolicy)
        scores = policy(batch)
        combined, labels = policy.combined(scores), _labels(policy, batch, scores)
        if self.compares == "answers":
            losses = self.function(Labelled(scores, labels))
            weight = 1 / answers.counts[answers.group]
            return Found(losses, weight, answers.answer_rows, combined, torch.zeros_like(combined), labels * torch.nan)
        if self.compares == "lists":
            nothing = torch.zeros_like(combined)
            lists = lists_of(Side(combined, nothing, nothing + 1), batch)
            losses, rewards = self.function(lists)
            worst = rewards.gather(1, lists.real.sum(1, keepdim=True) - 1)[:, 0]
            weight = torch.ones_like(losses)
            return Found(losses, weight, answers.rows, rewards[:, 0], worst, rewards[:, :1] * torch.nan)
        pairs = _pairs(scores, combined, labels, batch)
        apart = pairs.sign * (pairs.chosen - pairs.rejected)
        agree = right(apart).where(pairs.sign != 0, torch.nan)[:, : scores.shape[1]]
        ends = combined[answers.first], combined[answers.second]
        return Found(self.function(pairs), answers.weight, answers.pair_rows, *ends, agree)

    def facts(self) -> dict[str, Any]:
        """Return the means over the step's rows of what FACTS names; where nothing is compared, of the scores alone."""
        total, *sums = self.sums[0].clone()
        means = {name: s / total.clamp(min=1e-9) for name, s in zip(FACTS, sums, strict=True)}
        return {"rewards": means["rewards_chosen"]} if self.compares == "answers" else means

    def measure(self, policy: Policy, examples: Examples, tokens: int, world: World = ALONE) -> Metrics:
        """Return "validation_loss", and where answers are compared "preference_accuracy" (how often the better one has the higher score;
        of each attribute apart where rows compare them) and "reward_margin"."""
        device = next(policy.parameters()).device
        batches = list(self.batches(examples, np.arange(examples.rows), tokens, policy))
        names = [name for name, _ in policy.attributes] if isinstance(policy, RewardPolicy) else []
        sums, by_name = np.zeros((examples.rows, 3)), np.zeros((examples.rows, 2, len(names)))
        with looking(policy):
            for batch in batches[world.rank :: world.size]:
                found = self._found(policy, batch.to(device))
                margins = found.chosen - found.rejected
                each = torch.stack([found.losses, right(margins), margins], 1) * found.weight[:, None]
                np.add.at(sums, found.rows, each.double().cpu().numpy())
                if found.right.shape[1] == len(names):
                    said = torch.stack([found.right.nan_to_num(), (~found.right.isnan()).float()], 1)
                    np.add.at(by_name, found.rows, said.double().cpu().numpy())
        world.sum_([torch.from_numpy(sums), torch.from_numpy(by_name)])
        measured = {"validation_loss": metric(sums[:, 0])}
        if self.compares == "answers":
            return measured
        measured |= {"preference_accuracy": metric(sums[:, 1]), "reward_margin": margin_metric(sums[:, 2])}
        return measured | _by_attribute(names, by_name)


def _by_attribute(names: Sequence[str], right: Any) -> Metrics:
    """Return the accuracy of each of several attributes over the rows that compare it; right (rows,2,K): agreeing pairs, and all."""
    found = {}
    for name, agree, pairs in zip(names, *right.transpose(1, 2, 0), strict=True):
        if len(names) > 1 and (pairs > 0).any():
            found[f"attribute_accuracy/{name}"] = metric(agree[pairs > 0] / pairs[pairs > 0])
    return found


def _labels(policy: RewardPolicy, batch: FlatBatch, scores: Tensor) -> Tensor:
    """Return what the data says of each answer's attributes, (A,K), NaN where nothing."""
    assert batch.answers is not None
    labels = torch.full_like(scores, torch.nan).detach()
    for k, (name, _) in enumerate(policy.attributes):
        if (given := batch.constants.get(LABEL + name)) is not None:
            labels[batch.answers.of_target, k] = given.to(labels.dtype)
    return labels


def _pairs(scores: Tensor, combined: Tensor, labels: Tensor, batch: FlatBatch) -> ScorePairs:
    """Return the batch's pairs: by each attribute as the row's labels have it, by their weighted sum where it has none."""
    answers = batch.answers
    assert answers is not None
    first, second = answers.first, answers.second
    apart = (labels[first] - labels[second]).nan_to_num()
    silent = labels[first].isnan().all(1, keepdim=True)
    columns = torch.cat([scores, combined[:, None]], 1)
    sign = torch.cat([apart.sign(), silent.to(apart.dtype)], 1)
    margins = torch.cat([apart.abs(), answers.margin[:, None].to(apart.dtype)], 1)
    return ScorePairs(columns[first], columns[second], sign, margins)
