"""What a loop does, resolved, and the order it does it in: rows to a step, a pure function of data, seed and budget."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data.mixing import Numbers, from_easy_to_hard
from tunesmith.training.batch import Indices, epoch_order, steps_of_epoch

Rows = Callable[[int], Indices]
"""epoch -> the numbers of the rows that epoch holds, unshuffled (a source of weight 3 has its own thrice)."""


@dataclass(frozen=True)
class Plan:
    """Everything a loop needs to know, resolved: no value is inferred any more."""

    steps: int
    tokens_per_step: int | None
    batch_size: int | None
    microbatch_tokens: int
    learning_rate: float
    schedule: str | dict[str, Any]
    warmup: int
    clip_norm: float | Literal[False]
    seed: int
    evaluate_every: int
    checkpoint_every: int
    keep_last: int
    early_stopping: int | None
    max_bad_steps: int = 5
    difficulty: Numbers | None = None


def plan_steps(
    lengths: npt.NDArray[np.int64],
    rows: Rows,
    seed: int,
    tokens: int | None,
    batch_size: int | None,
    difficulty: Numbers | None = None,
) -> Iterator[tuple[float, Indices]]:
    """Yield (epochs done after it, row numbers) for every step, without end: a pure function of its arguments.

    difficulty (rows,): an epoch goes from low to high (data.mixing.from_easy_to_hard); None: it is shuffled.
    """
    for epoch in range(2**31):
        chosen = rows(epoch)
        order = chosen[epoch_order(len(chosen), seed, epoch)]
        if difficulty is not None:
            order = from_easy_to_hard(order, difficulty)
        taken = 0
        for step in steps_of_epoch(order, lengths, tokens, batch_size):
            taken += len(step)
            yield epoch + taken / len(chosen), step


def count_steps(
    lengths: npt.NDArray[np.int64],
    rows: Rows,
    seed: int,
    tokens: int | None,
    batch_size: int | None,
    epochs: float,
    difficulty: Numbers | None = None,
) -> int:
    """Return how many steps end within `epochs` epochs, at least 1."""
    count = 0
    for done, _ in plan_steps(lengths, rows, seed, tokens, batch_size, difficulty):
        if done > epochs + 1e-9:
            break
        count += 1
    return max(1, count)
