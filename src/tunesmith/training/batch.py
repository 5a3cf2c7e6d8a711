"""From examples to micro-batches: rows to a step, packing inside it, and the flat batch every objective consumes."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.model.attention import Segments, plan
from tunesmith.model.layout import moved
from tunesmith.training.links import Cluster, find_clusters

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlatBatch:
    """Segments of tokens laid end to end; nothing is padded.

    ids, positions (T,) int64; cu_seqlens (S+1,) int32, segment s is tokens cu_seqlens[s]:cu_seqlens[s+1], lengths[s] of them;
    parents[s] is -1, or the earlier segment that s continues (one level): s attends to it and its positions go on behind it;
    segments, the plan of attention over all that. target_index (N,) int64, the token whose hidden state predicts target n
    (several may share one); target_ids (N,) int64; weights (N,) float32; target_example (N,) int64, on the host: whose target it is.
    padding: the last segment, of so many tokens, belongs to no example (0: there is none).
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    target_index: Tensor
    target_ids: Tensor
    weights: Tensor
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    segments: Segments
    target_example: Indices
    padding: int = 0

    def to(self, device: torch.device) -> "FlatBatch":
        """Return the batch on `device`; a GPU's copies queue behind its work, and the host waits for neither."""
        if device.type == "cpu":
            return self
        tensors: dict[str, Any] = {name: moved(t, device) for name, t in _tensors(self).items()}
        return replace(self, segments=self.segments.to(device), **tensors)

    def pin_memory(self) -> "FlatBatch":
        """Return the batch in page-locked host memory, so that `to` only has to queue its copies."""
        own, plans = ({n: t.pin_memory() for n, t in _tensors(x).items()} for x in (self, self.segments))
        return replace(self, segments=replace(self.segments, **plans), **own)


def _tensors(holder: Any) -> dict[str, Any]:
    return {f.name: t for f in fields(holder) if isinstance(t := getattr(holder, f.name), Tensor)}


def collate(examples: Examples, indices: Indices, clusters: Sequence[Cluster] = (), multiple: int = 1) -> FlatBatch:
    """Lay the examples `indices`, and those of `clusters`, end to end; what a cluster's examples share is there once.

    Whole examples and shared prefixes come first, longest first; then what continues each prefix, longest first: segments of like
    length are neighbours in attention. An example's targets inside a shared prefix are its own, as if it stood alone. A last
    segment without targets fills the batch up to a `multiple` of tokens (compiled code likes few shapes).
    """
    offsets = examples.offsets
    whole = [Cluster(indices[i : i + 1], n) for i, n in enumerate(_lengths(examples, indices).tolist())]
    roots = sorted([*whole, *clusters], key=lambda c: -c.shared)
    segments = [(int(offsets[c.rows[0]]), c.shared, 0, -1) for c in roots]
    sequences = []  # (example, its root, the segment of what it has beyond that, if anything)
    for root, c in enumerate(roots):
        beyond = _lengths(examples, c.rows) - c.shared
        for i in np.argsort(-beyond, kind="stable").tolist():
            sequences.append((int(c.rows[i]), root, len(segments)))
            if beyond[i] > 0:
                segments.append((int(offsets[c.rows[i]]) + c.shared, int(beyond[i]), c.shared, root))
    padding = -sum(n for _, n, _, _ in segments) % multiple
    if padding:
        segments.append((0, padding, 0, -1))
    source, length, first, parents = np.array(segments).T
    starts = np.concatenate([[0], np.cumsum(length)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], length)
    ids = torch.from_numpy(examples.ids.take(within + np.repeat(source, length), mode="clip").astype(np.int64))
    rows, root_of, rest = np.array(sequences).T
    n = _lengths(examples, rows)
    position = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    inside = position < np.repeat(length[root_of], n)
    place = position + np.where(inside, np.repeat(starts[root_of], n), np.repeat(starts[rest] - length[root_of], n))
    targets = np.flatnonzero(examples.scored[position + np.repeat(offsets[rows], n)] & (position > 0))
    cu_seqlens = torch.from_numpy(starts.astype(np.int32))
    return FlatBatch(
        ids=ids,
        positions=torch.from_numpy(within + np.repeat(first, length)),
        cu_seqlens=cu_seqlens,
        target_index=torch.from_numpy(place[targets - 1]),
        target_ids=ids[torch.from_numpy(place[targets])],
        weights=torch.ones(len(targets)),
        lengths=tuple(length.tolist()),
        parents=tuple(parents.tolist()),
        segments=plan(tuple(length.tolist()), cu_seqlens, tuple(parents.tolist())),
        target_example=np.repeat(rows, n)[targets],
        padding=padding,
    )


def _lengths(examples: Examples, rows: Indices) -> Indices:
    """Return the tokens of each of `rows`; examples.lengths would look at all examples."""
    found: Indices = examples.offsets[rows + 1] - examples.offsets[rows]
    return found


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


def arrange(
    examples: Examples, rows: Indices, capacity: int, link: bool = False
) -> list[tuple[Indices, list[Cluster]]]:
    """Return what `collate` makes micro-batches of at most `capacity` tokens of, which together hold exactly the examples `rows`.

    link: tokens that several of the examples begin with run once for all of those in a batch.
    """
    alone, clusters = find_clusters(examples, rows) if link else (rows, [])
    parts = [Cluster(alone[i : i + 1], 0) for i in range(len(alone))]
    for c in clusters:  # one that does not fit is cut into several, each with the prefix
        for chosen in pack(_lengths(examples, c.rows) - c.shared, capacity - c.shared):
            parts.append(Cluster(c.rows[chosen], c.shared if len(chosen) > 1 else 0))
    costs = np.array([c.shared + int((_lengths(examples, c.rows) - c.shared).sum()) for c in parts], dtype=np.int64)
    batches = []
    for chosen in pack(costs, capacity):
        here = [parts[i] for i in chosen]
        whole = np.concatenate([rows[:0], *(c.rows for c in here if not c.shared)])
        batches.append((whole, [c for c in here if c.shared]))
    return batches


def microbatches(
    examples: Examples, rows: Indices, capacity: int, link: bool = False, multiple: int = 1
) -> Iterator[FlatBatch]:
    """Yield the flat batches that `arrange` says, each filled up to a `multiple` of tokens."""
    for indices, clusters in arrange(examples, rows, capacity, link):
        yield collate(examples, indices, clusters, multiple)


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
