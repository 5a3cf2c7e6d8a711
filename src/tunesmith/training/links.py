"""Which rows of a step begin with the same tokens (a system prompt, one conversation's history): those tokens need to run once."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Examples

SHARED = 16  # tokens; a shorter common beginning saves less than a group of its own in attention costs


Indices = npt.NDArray[np.int64]
Found = tuple[list[int], int]  # rows, and how many tokens they share


class Cluster(NamedTuple):
    """Examples `rows` (C,) that all begin with the same `shared` tokens and have more behind them."""

    rows: Indices
    shared: int


def label(examples: Examples, rows: Indices) -> tuple[Indices, Indices]:
    """Return the cluster that each row is in, -1 for none, (rows,), and how many tokens each shares, (C,): nearly as many tokens are saved
    as one level can.

    In lexicographic order two rows share the least that neighbours between them share. So rows that share as much form intervals,
    and these a tree. From its leaves on, the rows of an interval that are not yet in a cluster become one, together with those
    of the clusters inside it that save less by themselves.
    """
    offsets = examples.offsets
    ids = [examples.ids[offsets[r] : offsets[r + 1]] for r in rows.tolist()]
    text = [x.tobytes() for x in ids]
    order = np.array(sorted(range(len(rows)), key=text.__getitem__), dtype=np.int64)
    head = SHARED * examples.ids.itemsize
    common = [_common(ids[a], ids[b]) if text[a][:head] == text[b][:head] else 0 for a, b in pairwise(order.tolist())]
    found, cluster = _walk([*common, 0]), np.full(len(rows), -1, dtype=np.int64)
    for number, (places, _) in enumerate(found):
        cluster[order[places]] = number
    return cluster, np.array([shared for _, shared in found], dtype=np.int64)


def _common(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """Return how many tokens two rows begin with in common; the last token of either is never among them."""
    n = min(len(a), len(b)) - 1
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


def _walk(common: list[int]) -> list[Found]:
    """Return the clusters among sorted rows; common[i] is what rows i and i + 1 share, 0 after the last."""
    done: list[Found] = []
    open_: list[tuple[int, list[int], list[Found]]] = []  # intervals begun: (shared, rows in no cluster, clusters)
    for row, shared in enumerate(common):
        free: list[int] = [row]
        clusters: list[Found] = []
        while open_ and open_[-1][0] > shared:
            height, earlier, found = open_.pop()
            free, clusters = _settle(height, earlier + free, found + clusters)
        if shared < SHARED:
            done += clusters
        elif open_ and open_[-1][0] == shared:
            open_[-1][1].extend(free)
            open_[-1][2].extend(clusters)
        else:
            open_.append((shared, free, clusters))
    return done


def _settle(shared: int, free: list[int], clusters: list[Found]) -> tuple[list[int], list[Found]]:
    """Return (rows in no cluster, clusters) of an interval whose rows all share `shared` tokens, from those inside it."""
    weak = [c for c in clusters if (len(c[0]) - 1) * c[1] < len(c[0]) * shared]
    together = free + [row for c in weak for row in c[0]]
    apart = sum((len(rows) - 1) * height for rows, height in weak) + max(0, len(free) - 1) * shared
    if (len(together) - 1) * shared > apart:
        return [], [*(c for c in clusters if c not in weak), (together, shared)]
    return ([], [*clusters, (free, shared)]) if len(free) > 1 else (free, clusters)
