"""From examples to micro-batches: rows to a step, packing inside it, and the flat batch every objective consumes."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlatBatch:
    """Segments of tokens laid end to end, longest first; nothing is padded.

    ids, positions (T,) int64; cu_seqlens (S+1,) int32, segment s is tokens cu_seqlens[s]:cu_seqlens[s+1];
    target_index (N,) int64, the token whose hidden state predicts target n; target_ids (N,) int64; weights (N,) float32.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    target_index: Tensor
    target_ids: Tensor
    weights: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> "FlatBatch":
        """Return the batch on `device`; the copy overlaps with the device's work where the host memory is pinned."""
        if device.type == "cpu":
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.pin_memory().to(device, non_blocking=True)
        return FlatBatch(**moved)


def collate(examples: Examples, indices: Indices) -> FlatBatch:
    """Lay the examples end to end, longest first (so that segments of like length are neighbours in attention)."""
    indices = indices[np.argsort(-examples.lengths[indices], kind="stable")]
    lengths = examples.lengths[indices]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    source = positions + np.repeat(examples.offsets[indices], lengths)
    ids = torch.from_numpy(examples.ids[source].astype(np.int64))
    targets = torch.from_numpy(np.flatnonzero(examples.scored[source] & (positions > 0)))
    return FlatBatch(
        ids=ids,
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        target_index=targets - 1,
        target_ids=ids[targets],
        weights=torch.ones(len(targets)),
        lengths=tuple(lengths.tolist()),
    )


def pack(lengths: npt.NDArray[np.int64], capacity: int) -> list[Indices]:
    """Best-fit-decreasing: return bins of row numbers whose lengths sum to at most `capacity` (a longer row alone).

    Deterministic: ties go to the earlier row and the earlier bin.
    """
    bins: list[list[int]] = []
    room: list[
        tuple[int, int]
    ] = []  # (tokens free, bin), sorted: the first with enough room is the fullest that has it
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        at = bisect_left(room, (length, 0))
        free, best = room.pop(at) if at < len(room) else (capacity, len(bins))
        if best == len(bins):
            bins.append([])
        bins[best].append(row)
        insort(room, (free - length, best))
    return [np.array(b, dtype=np.int64) for b in bins]


def microbatches(examples: Examples, rows: Indices, capacity: int) -> Iterator[FlatBatch]:
    """Yield the flat batches of at most `capacity` tokens that together hold exactly the examples `rows`."""
    for chosen in pack(examples.lengths[rows], capacity):
        yield collate(examples, rows[chosen])


def steps_of_epoch(
    order: Indices, lengths: npt.NDArray[np.int64], tokens: int | None, rows: int | None
) -> list[Indices]:
    """Cut one epoch's shuffled `order` into steps: rows in order up to `tokens` per step, or `rows` rows per step.

    A row longer than the budget is a step of its own; every row is in exactly one step; the last step may be smaller.
    """
    if rows is not None:
        return [order[i : i + rows] for i in range(0, len(order), rows)]
    assert tokens is not None
    steps, start, used = [], 0, 0
    for i, length in enumerate(lengths[order].tolist()):
        if i > start and used + length > tokens:
            steps.append(order[start:i])
            start, used = i, 0
        used += length
    return [*steps, order[start:]] if len(order) else []


def epoch_order(n: int, seed: int, epoch: int) -> Indices:
    """Return a permutation of range(n) that depends on the seed and the epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def examples_of(examples: Examples, records: Indices) -> Indices:
    """Return the numbers of all examples made of the given records, in the records' order (a record may occur often, or have none)."""
    by_record = np.argsort(examples.record, kind="stable")
    owners = examples.record[by_record]
    first, last = np.searchsorted(owners, records, "left"), np.searchsorted(owners, records, "right")
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    found: Indices = by_record[np.repeat(first, counts) + within]
    return found
