"""What a step asks of an objective: its micro-batches, a first pass where it needs one, its loss, and what is told of it.

The files of training/objectives hold the mathematics; here, in compared.py and in judged.py it meets batches. A sum over tokens needs
nothing else. Losses over answers sum their tokens first. What looks at the whole step at once gets it from a first pass without
gradients. So no loss depends on how a step is cut into micro-batches, or dealt out to processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.evaluation import statistics
from tunesmith.model.policy import Policy
from tunesmith.training.batch import FlatBatch, Indices, microbatches
from tunesmith.training.objectives._answers import Side
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.scoring import token_metrics

Metrics = dict[str, dict[str, Any]]


class Totals(NamedTuple):
    """What a step holds over all processes: scored tokens, rows, and scored tokens of each row's best answer."""

    scored: int
    rows: int
    best: int


class Objective:
    """A sum over tokens, divided by their number: the one of `loss(logps, weights)`. Others override what differs.

    sums: tensors that `loss` adds to; zero before a step's first micro-batch, and in `facts` of the whole step.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.sums: tuple[Tensor, ...] = ()

    def totals(self, examples: Examples, rows: Indices) -> Totals:
        """Return what a step over `rows` holds; at least 1 of each, for they divide."""
        members = examples.members(rows)
        counts = examples.scored_offsets[members + 1] - examples.scored_offsets[members]
        best = counts if examples.answer is None else counts[examples.answer[members] == 0]
        return Totals(*(max(1, int(n)) for n in (counts.sum(), len(rows), best.sum())))

    def unknowing(self, examples: Examples) -> float:
        """Return the largest loss that rows may have before anything is learnt, where that is not a token's of uniform chances; else 0."""
        return 0.0

    def batches(self, examples: Examples, rows: Indices, capacity: int, policy: Policy) -> Iterator[FlatBatch]:
        """Yield the micro-batches of a step over `rows`, on the host."""
        return microbatches(examples, examples.members(rows), capacity, policy.links, policy.multiple)

    def first(self, policy: Policy, batches: Sequence[FlatBatch], totals: Totals, world: World = ALONE) -> None:
        """Look at the whole step, without gradients, where the loss needs to know it. All processes call it, or none does."""

    def loss(self, policy: Policy, batch: FlatBatch, totals: Totals) -> Tensor:
        """Return the batch's share of the step's loss, (): the shares of all micro-batches and processes add up to it."""
        return self.function(policy(batch), batch.weights) / totals.scored  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        """Return what is told of a step that is done; a tensor () is read when the step's loss is."""
        return {}

    def measure(self, policy: Policy, examples: Examples, tokens: int, world: World = ALONE) -> Metrics:
        """Return "validation_loss" and what else tells how well the policy does on the examples, {name: {value, n, low, high}}."""
        return token_metrics(policy, examples, tokens, world)


def summed(logps: Tensor, batch: FlatBatch, factor: Tensor | None = None) -> Side:
    """Return the batch's answers as losses see them, (A,) of each number; factor (N,) is what each target's log-prob counts by."""
    answers = batch.answers
    assert answers is not None
    reference = batch.constants.get("reference")
    if factor is not None:
        logps, reference = logps * factor, None if reference is None else reference * factor
    none = logps.new_zeros(len(answers.group))
    return Side(
        none.index_add(0, answers.of_target, logps),
        none if reference is None else none.index_add(0, answers.of_target, reference.to(logps.dtype)),
        none.index_add(0, answers.of_target, torch.ones_like(logps)).detach(),
    )


def of(side: Side, index: Tensor) -> Side:
    """Return some of the answers."""
    return Side(*(x[index] for x in side))


@contextmanager
def looking(policy: Policy, as_trained: bool = False) -> Iterator[None]:
    """Within it nothing has gradients; in eval mode, or as_trained: with the dropout that the next forwards will draw again."""
    training, device = policy.training, next(policy.parameters()).device
    policy.train(training and as_trained)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        policy.train(training)
        policy.take_auxiliary()


def metric(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean of numbers (n,) with its 95% interval."""
    low, high = statistics.mean_interval(values)
    return {"value": float(values.mean()), "n": len(values), "low": low, "high": high}


def margin_metric(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean of margins (n,) with its 95% interval; they are no shares, even where all are 0."""
    low, high = statistics.percentile_interval(statistics.bootstrap_ratios(values, np.ones(len(values))))
    return {"value": float(values.mean()), "n": len(values), "low": low, "high": high}


def right(margins: Tensor) -> Tensor:
    """Return 1 where the better answer has the higher reward, 0 where the other has, 1/2 where they are the same, as before training."""
    return (margins.sign() + 1) / 2
