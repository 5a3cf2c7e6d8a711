"""Near duplicates: MinHash signatures, the pairs that bands of them propose, and the clusters that checked pairs make.

MinHash: the share of equal slots of two signatures estimates the Jaccard similarity of the two sets (Broder, 1997); rows
whose signatures agree in a whole band of slots are candidates (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

SLOTS = 128  # of 16 bits, of which the lowest tell as well as all (Li and König, 2010); an estimate is off by 0.044 at most (1 sigma)
NEAREST = 5  # the most earlier rows of one row that are proposed
_NEIGHBOURS = 8  # how many of a bucket's next rows each row is compared with; bounds what a set of one template costs
_SEED = 1
_CHUNK = 2048

Signatures = npt.NDArray[np.uint16]
Pairs = npt.NDArray[np.int64]


def signatures(sets: Iterable[list[str]], count: int) -> Signatures:
    """Return the MinHash signature of each of `count` sets, (count, SLOTS)."""
    from rensa import RMinHash

    out = np.empty((count, SLOTS), dtype=np.uint16)
    at = 0
    given = iter(sets)
    while batch := list(islice(given, _CHUNK)):
        made = RMinHash.digest_matrix_from_token_sets(batch, SLOTS, _SEED).to_rows()
        out[at : at + len(batch)] = np.array(made, dtype=np.uint32) & 0xFFFF
        at += len(batch)
    return out


def rows_per_band(threshold: float) -> int:
    """Return r, the most slots a band may have so that a pair at the threshold meets in one of SLOTS // r bands with p >= 0.98."""
    fitting = [r for r in range(1, SLOTS // 4) if 1 - (1 - threshold**r) ** (SLOTS // r) >= 0.98]
    return max(fitting, default=1)


def candidates(sketch: Signatures, threshold: float, known: int = 0) -> tuple[Pairs, npt.NDArray[np.float32]]:
    """Return pairs of row numbers (P, 2), the smaller first, and their estimated similarity (P,), sorted by the later row and then
    the nearest first.

    With `known`, only pairs of one of the first `known` rows and a later one. Left out are pairs below the threshold by 3 sigma,
    and all but the 5 nearest earlier rows of a row. In a bucket of many rows each is compared with the first and with its
    neighbours in the order of the next band, where near copies stand side by side. So time and memory grow with the rows, not
    with their pairs.
    """
    least = threshold - 3 * (threshold * (1 - threshold) / SLOTS) ** 0.5
    width = rows_per_band(threshold)
    bands = [slice(at, at + width) for at in range(0, SLOTS - width + 1, width)]
    pairs, near, count = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)], 0
    key = _key(sketch[:, bands[0]])
    for band in bands[1:] + bands[:1]:
        following = _key(sketch[:, band])
        order = np.lexsort((following, key))
        for found in _in_buckets(order, key[order]):
            found = found[(found[:, 0] < known) & (found[:, 1] >= known)] if known else found
            close = _estimates(sketch, found)
            pairs.append(found[close >= least])
            near.append(close[close >= least])
            count += len(near[-1])
            if count > 20 * NEAREST * len(sketch):
                best = _nearest(np.concatenate(pairs), np.concatenate(near))
                pairs, near, count = [best[0]], [best[1]], len(best[1])
        key = following
    return _nearest(np.concatenate(pairs), np.concatenate(near))


def _nearest(pairs: Pairs, near: npt.NDArray[np.float32]) -> tuple[Pairs, npt.NDArray[np.float32]]:
    """Return each pair once, sorted by the later row, and of each later row those with its nearest earlier ones."""
    order = np.lexsort((pairs[:, 0], -near, pairs[:, 1]))
    pairs, near = pairs[order], near[order]
    new = np.ones(len(pairs), dtype=np.bool_)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    pairs, near = pairs[new], near[new]
    at = np.arange(len(pairs))
    starts = np.ones(len(pairs), dtype=np.bool_)
    starts[1:] = pairs[1:, 1] != pairs[:-1, 1]
    kept = at - np.maximum.accumulate(np.where(starts, at, 0)) < NEAREST
    return pairs[kept], near[kept]


def _key(band: Signatures) -> npt.NDArray[np.uint64]:
    out = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        out = (out ^ column) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
    return out


def _in_buckets(order: npt.NDArray[np.int64], key: npt.NDArray[np.uint64]) -> Iterator[Pairs]:
    """Yield the pairs to look at among rows in the order of their keys, in chunks."""
    starts = np.concatenate(([True], key[1:] != key[:-1]))
    first = np.maximum.accumulate(np.where(starts, np.arange(len(key)), 0))
    for step in range(1, _NEIGHBOURS + 1):
        at = np.flatnonzero(key[step:] == key[:-step]) if step < len(key) else np.arange(0)
        yield from _chunks(order[at], order[at + step])
    far = np.flatnonzero(np.arange(len(key)) - first > _NEIGHBOURS)
    yield from _chunks(order[first[far]], order[far])


def _chunks(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Iterator[Pairs]:
    for at in range(0, len(a), _CHUNK):
        pair = np.stack([a[at : at + _CHUNK], b[at : at + _CHUNK]], axis=1)
        yield np.sort(pair, axis=1)


def _estimates(sketch: Signatures, pairs: Pairs) -> npt.NDArray[np.float32]:
    same: npt.NDArray[np.float32] = (sketch[pairs[:, 0]] == sketch[pairs[:, 1]]).mean(axis=1, dtype=np.float32)
    return same


class Clusters:
    """Rows joined into clusters (union-find); a cluster is named by its smallest row."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def of(self, row: int) -> int:
        """Return the name of the row's cluster; its own number where it is alone."""
        path = []
        while row in self._parent:
            path.append(row)
            row = self._parent[row]
        for passed in path:
            self._parent[passed] = row
        return row

    def join(self, a: int, b: int) -> None:
        """Make one cluster of the clusters of two rows."""
        low, high = sorted((self.of(a), self.of(b)))
        if low != high:
            self._parent[high] = low

    def members(self) -> Iterable[int]:
        """Return every row that is in a cluster but not its name."""
        return self._parent
