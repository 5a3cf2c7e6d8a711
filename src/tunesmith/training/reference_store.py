"""Log-probs kept between runs, part by part: found again by an example's own tokens and by the weights that gave them.

A part is one file: a head (struct), then of each example a digest of its ids and of which are scored (16 bytes) and how many are scored
(int32), then all their log-probs (float32). It holds no code, is written beside and renamed, and its checksum tells a damaged one.
"""

import contextlib
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.data import cache
from tunesmith.data.records import Examples

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
ENDING = ".logps"
_HEAD = struct.Struct("<8sQQI")  # magic, examples, log-probs, CRC-32 of all that follows
_MAGIC = b"TUNELGP1"
_DIGEST = 16


class Part(NamedTuple):
    """n examples: digests (n,) of 16 bytes, counts (n,) int32 of their scored tokens, values (sum of counts,) float32, in nats."""

    digests: npt.NDArray[np.bytes_]
    counts: npt.NDArray[np.int32]
    values: Values

    def pieces(self) -> list[Any]:
        """Return the bytes of its file, in pieces."""
        arrays = [np.ascontiguousarray(a) for a in self]
        sum_ = 0
        for array in arrays:
            sum_ = zlib.crc32(array.view(np.uint8).data, sum_)
        return [_HEAD.pack(_MAGIC, len(self.digests), len(self.values), sum_), *(a.view(np.uint8).data for a in arrays)]


def digests(examples: Examples) -> npt.NDArray[np.bytes_]:
    """Return a digest of each example's ids and of which of them are scored, (E,)."""
    ids, scored = examples.ids, examples.scored
    each = (
        hashlib.blake2b(ids[a:b].tobytes() + scored[a:b].tobytes(), digest_size=_DIGEST).digest()
        for a, b in pairwise(examples.offsets.tolist())
    )
    return np.frombuffer(b"".join(each), f"S{_DIGEST}")


def part_of(examples: Examples, members: Indices, values: Values, names: npt.NDArray[np.bytes_]) -> Part:
    """Return the part that holds the examples `members` (M,); values (S,) and names (E,), `digests`, are of all examples."""
    offsets = examples.scored_offsets
    counts = (offsets[members + 1] - offsets[members]).astype(np.int32)
    return Part(names[members], counts, values[ranges(offsets[members], counts)])


def joined(parts: Sequence[Part]) -> Part:
    """Return one part with what all hold."""
    return Part(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def read(file: Path) -> Part | None:
    """Return what a file holds; None where it is not there, or torn or damaged: what it held is then computed again."""
    try:
        raw = file.read_bytes()
        magic, examples, count, sum_ = _HEAD.unpack_from(raw)
    except (OSError, struct.error):
        return None
    body = memoryview(raw)[_HEAD.size :]
    if magic != _MAGIC or len(body) != examples * (_DIGEST + 4) + 4 * count or zlib.crc32(body) != sum_:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # it was used now
    names = np.frombuffer(body, f"S{_DIGEST}", examples)
    counts = np.frombuffer(body, "<i4", examples, examples * _DIGEST)
    return Part(names, counts, np.frombuffer(body, "<f4", count, examples * (_DIGEST + 4)))


def fill(
    examples: Examples, names: npt.NDArray[np.bytes_], parts: Sequence[Part]
) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Return the log-probs that the parts hold of each scored token, NaN where none does, (S,), and of which examples that is, (E,)."""
    offsets = examples.scored_offsets
    counts = np.diff(offsets)
    values, found = np.full(offsets[-1], np.nan, dtype=np.float32), np.zeros(len(examples), dtype=np.bool_)
    if not (held := [part for part in parts if len(part.digests)]):
        return values, found
    whole = joined(held)
    order = np.argsort(whole.digests, kind="stable")  # of what several hold, the first
    at = order[np.searchsorted(whole.digests, names, sorter=order).clip(max=len(order) - 1)]
    new = np.flatnonzero((whole.digests[at] == names) & (whole.counts[at] == counts))
    starts = np.cumsum(whole.counts, dtype=np.int64) - whole.counts
    values[ranges(offsets[new], counts[new])] = whole.values[ranges(starts[at[new]], counts[new])]
    found[new] = True
    return values, found


def ranges(starts: Indices, counts: npt.NDArray[Any]) -> Indices:
    """Return counts[0] numbers from starts[0] on, then counts[1] from starts[1] on, ..., one behind the other."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    found: Indices = np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
    return found


class Store:
    """The parts of one reference in the cache of data/cache.py, whose limits hold for them; key: what its log-probs depend on.

    Processes may write at once: every part is a file of its own.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.folder: Path | None = None
        with contextlib.suppress(RuntimeError):  # no home, no cache
            self.folder = cache.folder_of_cache()

    def parts(self) -> list[Part]:
        """Return the parts that are there and whole, the oldest first: of what several hold, the first stays what is found."""
        if self.folder is None:
            return []
        files = sorted(self.folder.glob(f"{self.key}-*{ENDING}"))
        return [part for file in files if (part := read(file)) is not None]

    def keep(self, part: Part) -> tuple[Path | None, list[str]]:
        """Write a part; return its file, None where it could not be, and notices of that."""
        if self.folder is None:
            return None, [
                "the reference's log-probs are not kept for the next start: there is no home folder for a cache"
            ]
        file = self.folder / f"{self.key}-{time.time_ns():020d}-{os.getpid()}{ENDING}"
        said = cache.keep(file, part.pieces(), "the reference's log-probs are")
        return None if said else file, said
