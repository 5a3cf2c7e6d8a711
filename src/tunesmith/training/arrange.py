"""Which examples go into which micro-batch: best-fit-decreasing, the answers of a row together, what they begin with in common once."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Examples
from tunesmith.training.links import Cluster, label

Indices = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """What stays in one micro-batch: examples `alone` (n,), clusters of others, and the tokens that all of them come to."""

    alone: Indices
    clusters: list[Cluster]
    tokens: int


class Linked(NamedTuple):
    """Examples `rows` (n,), which may be there several times: their lengths (n,), the unit that each belongs to, ascending, (n,), its
    cluster, -1 for none, (n,), and how many tokens each cluster shares, (C,)."""

    rows: Indices
    lengths: Indices
    unit: Indices
    cluster: Indices
    shared: Indices

    def some(self, places: Indices) -> "Linked":
        """Return the examples at `places` alone."""
        return Linked(self.rows[places], self.lengths[places], self.unit[places], self.cluster[places], self.shared)


def arrange(
    examples: Examples, rows: Indices, capacity: int, link: bool = False, whole: bool = True
) -> list[tuple[Indices, list[Cluster]]]:
    """Return what `collate` makes micro-batches of at most `capacity` tokens of, which together hold exactly the examples `rows`.

    link: tokens that several of the examples begin with run once for all of those in a batch. whole: the examples of one row, where
    rows have several, stay in one batch, which that row may fill beyond the capacity.
    """
    units = _units(examples, rows, whole)
    pieces = _linked(examples, units, capacity) if link else [_alone(examples, unit) for unit in units]
    batches = []
    for chosen in pack(np.array([piece.tokens for piece in pieces], dtype=np.int64), capacity):
        here = [pieces[i] for i in chosen]
        alone = np.concatenate([rows[:0], *(piece.alone for piece in here)])
        batches.append((alone, [cluster for piece in here for cluster in piece.clusters]))
    return batches


def _units(examples: Examples, rows: Indices, whole: bool) -> list[Indices]:
    """Return the examples `rows` in parts that stay together; a row that was drawn twice is two."""
    if examples.groups is None or not whole:
        return [rows[i : i + 1] for i in range(len(rows))]
    group = np.searchsorted(examples.groups, rows, side="right")
    begins = np.flatnonzero((np.diff(group) != 0) | (np.diff(rows) <= 0)) + 1
    return np.split(rows, begins) if len(rows) else []


def _alone(examples: Examples, unit: Indices) -> Piece:
    return Piece(unit, [], int((examples.offsets[unit + 1] - examples.offsets[unit]).sum()))


def _linked(examples: Examples, units: Sequence[Indices], capacity: int) -> list[Piece]:
    """Return the units in pieces: those that share something in one, as far as that has at most `capacity` tokens."""
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *units])
    ends = np.cumsum([0, *(len(unit) for unit in units)])
    every = Linked(
        rows,
        examples.offsets[rows + 1] - examples.offsets[rows],
        np.repeat(np.arange(len(units)), np.diff(ends)),
        *label(examples, rows),
    )
    pieces: list[Piece] = []
    for joined in _joined(every, len(units)):
        places = np.concatenate([np.arange(ends[unit], ends[unit + 1]) for unit in joined])
        piece = _piece(every.some(places))
        if len(joined) == 1 or piece.tokens <= capacity:
            pieces.append(piece)
        else:
            pieces += _cut(examples, every.some(places), capacity)
    return pieces


def _joined(every: Linked, count: int) -> list[list[int]]:
    """Return the numbers of units that clusters join, directly or by others."""
    root = list(range(count))

    def of(unit: int) -> int:
        while root[unit] != unit:
            root[unit] = unit = root[root[unit]]
        return unit

    first: dict[int, int] = {}
    for cluster, unit in zip(every.cluster.tolist(), every.unit.tolist(), strict=True):
        if cluster >= 0:
            root[of(unit)] = of(first.setdefault(cluster, unit))
    joined: dict[int, list[int]] = {}
    for unit in range(count):
        joined.setdefault(of(unit), []).append(unit)
    return list(joined.values())


def _piece(some: Linked) -> Piece:
    alone, clusters, tokens = some.cluster < 0, [], int(some.lengths.sum())
    for cluster in np.unique(some.cluster[~alone]).tolist():
        mine, shared = some.cluster == cluster, int(some.shared[cluster])
        count = int(mine.sum())
        if count > 1:
            clusters.append(Cluster(some.rows[mine], shared))
            tokens -= (count - 1) * shared
        else:
            alone |= mine
    return Piece(some.rows[alone], clusters, tokens)


def _cut(examples: Examples, some: Linked, capacity: int) -> list[Piece]:
    """Return units that do not fit together in several pieces, each of which runs what its units share."""
    places = np.split(np.arange(len(some.unit)), np.flatnonzero(np.diff(some.unit)) + 1)
    units = [some.some(own) for own in places]
    held = np.bincount(np.concatenate([np.unique(unit.cluster[unit.cluster >= 0]) for unit in units]))
    across = np.flatnonzero(held > 1)  # clusters that several units are in
    beyond = [_piece(unit).tokens for unit in units]
    for i, unit in enumerate(units):
        beyond[i] -= int(some.shared[np.intersect1d(unit.cluster, across)].sum())
    pieces = []
    for chosen in pack(np.array(beyond), capacity - int(some.shared[across].sum())):
        if len(chosen) == 1:  # what it shares within itself may be more than what it shares with others
            pieces += _linked(examples, [units[chosen[0]].rows], capacity)
        else:
            pieces.append(_piece(some.some(np.concatenate([places[i] for i in np.sort(chosen)]))))
    return pieces


def pack(lengths: Indices, capacity: int) -> list[Indices]:
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
