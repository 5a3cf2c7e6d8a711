"""From examples to micro-batches: rows to a step, packing inside it, and the flat batch every objective consumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.model.attention import Segments, plan
from tunesmith.model.layout import moved
from tunesmith.training import answers
from tunesmith.training.answers import Answers
from tunesmith.training.arrange import arrange
from tunesmith.training.links import Cluster

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlatBatch:
    """Segments of tokens laid end to end; nothing is padded.

    ids, positions (T,) int64; cu_seqlens (S+1,) int32, segment s is tokens cu_seqlens[s]:cu_seqlens[s+1], lengths[s] of them;
    parents[s] is -1, or the earlier segment that s continues (one level): s attends to it and its positions go on behind it;
    segments, the plan of attention over all that. target_index (N,) int64, the token whose hidden state predicts target n
    (several may share one); target_ids (N,) int64; weights (N,) float32; target_example (N,) int64, on the host: whose target it is.
    padding: the last segment, of so many tokens, belongs to no example (0: there is none). answers: who is compared with whom, where
    the examples are answers; constants: by name a number for each target, (N,). trained: whether gradients are asked of it (a step's
    first pass over what only measures, as KTO's mismatched answers, asks none).
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
    answers: Answers | None = None
    constants: dict[str, Tensor] = field(default_factory=dict)
    trained: bool = True

    def to(self, device: torch.device) -> "FlatBatch":
        """Return the batch on `device`; a GPU's copies queue behind its work, and the host waits for neither."""
        if device.type == "cpu":
            return self
        tensors: dict[str, Any] = {name: moved(t, device) for name, t in _tensors(self).items()}
        constants = {name: moved(t, device) for name, t in self.constants.items()}
        answers = self.answers and self.answers.to(device)
        return replace(self, segments=self.segments.to(device), answers=answers, constants=constants, **tensors)

    def pin_memory(self) -> "FlatBatch":
        """Return the batch in page-locked host memory, so that `to` only has to queue its copies."""
        own, plans = ({n: t.pin_memory() for n, t in _tensors(x).items()} for x in (self, self.segments))
        constants = {name: t.pin_memory() for name, t in self.constants.items()}
        answers = self.answers and self.answers.pin_memory()
        return replace(self, segments=replace(self.segments, **plans), answers=answers, constants=constants, **own)


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
    of_target = np.repeat(np.arange(len(rows)), n)[targets]
    last = place[np.cumsum(n) - 1]
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
        target_example=rows[of_target],
        padding=padding,
        answers=None if examples.groups is None else answers.find(examples, rows, last, of_target),
        constants=_constants(examples, rows),
    )


def _constants(examples: Examples, rows: Indices) -> dict[str, Tensor]:
    """Return what is known of each scored token of the examples `rows`, laid end to end."""
    if not examples.constants:
        return {}
    of = [slice(examples.scored_offsets[row], examples.scored_offsets[row + 1]) for row in rows.tolist()]
    return {k: torch.from_numpy(np.concatenate([v[s] for s in of])) for k, v in examples.constants.items()}


def _lengths(examples: Examples, rows: Indices) -> Indices:
    """Return the tokens of each of `rows`; examples.lengths would look at all examples."""
    found: Indices = examples.offsets[rows + 1] - examples.offsets[rows]
    return found


def microbatches(
    examples: Examples, rows: Indices, capacity: int, link: bool = False, multiple: int = 1
) -> Iterator[FlatBatch]:
    """Yield the flat batches that `arrange` says of the examples `rows`, each filled up to a `multiple` of tokens."""
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
