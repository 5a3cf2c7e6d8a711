"""Texts as vectors of hashed words (TF-IDF), their cosine similarity, and clusters of them (spherical k-means).

tf-idf: (1 + ln tf) ln((1 + N) / (1 + df)) + 1, of words hashed to DIMENSIONS places (Weinberger et al., 2009, arXiv 0902.2206),
scaled to length 1. What is alike here shares words, not meaning.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.data.ngrams import words

DIMENSIONS = 1 << 18
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


def counted(text: str) -> tuple[Places, Floats]:
    """Return (places, 1 + ln tf) of the words of a text, both (W,), the places sorted and each once."""
    counts = Counter(zlib.crc32(w.encode("utf-8", "surrogatepass")) % DIMENSIONS for w in words(text))
    places = np.array(sorted(counts), dtype=np.int64)
    return places, (1 + np.log(np.array([counts[p] for p in places.tolist()] or [], dtype=np.float32))).astype(
        np.float32
    )


def rarity(texts: Iterable[str]) -> Floats:
    """Return the inverse document frequency of every place, (DIMENSIONS,)."""
    seen, count = np.zeros(DIMENSIONS, dtype=np.int64), 0
    for text in texts:
        seen[counted(text)[0]] += 1
        count += 1
    return (np.log((1 + count) / (1 + seen)) + 1).astype(np.float32)


def vector(text: str, idf: Floats) -> tuple[Places, Floats]:
    """Return a text's TF-IDF vector of length 1 as (places, values); empty of a text without words."""
    places, weight = counted(text)
    values = weight * idf[places]
    return places, values / max(float(np.linalg.norm(values)), 1e-12)


class Examples:
    """Example texts to compare others with."""

    def __init__(self, texts: Sequence[str], idf: Floats) -> None:
        made = [vector(text, idf) for text in texts]
        self.idf = idf
        self._known = np.unique(np.concatenate([places for places, _ in made] or [np.empty(0, np.int64)]))
        self._matrix = np.zeros((len(made), len(self._known)), dtype=np.float32)
        for row, (places, values) in enumerate(made):
            self._matrix[row, np.searchsorted(self._known, places)] = values

    def similarity(self, text: str) -> float:
        """Return the cosine of the text and the nearest example, 0 to 1."""
        places, values = vector(text, self.idf)
        if not len(places) or not len(self._known):
            return 0.0
        at = np.minimum(np.searchsorted(self._known, places), len(self._known) - 1)
        both = self._known[at] == places
        return float((self._matrix[:, at[both]] @ values[both]).max()) if both.any() else 0.0


def folded(texts: Sequence[str], idf: Floats, size: int = 1024) -> Floats:
    """Return the vectors of the texts in fewer dimensions, (N, size), each of length 1: places hashed once more, with signs."""
    out = np.zeros((len(texts), size), dtype=np.float32)
    for row, text in enumerate(texts):
        places, values = vector(text, idf)
        mixed = (places * 0x9E3779B1) & 0xFFFFFFFF
        out[row] = np.bincount((mixed >> 8) % size, np.where(mixed & 1, values, -values), minlength=size)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return out


def clusters(points: Floats, k: int, seed: int = 0, rounds: int = 20) -> tuple[Places, Floats]:
    """Return (the cluster of each point (N,), centres (k', d)) by spherical k-means; k' <= k, larger clusters first.

    Seeded by k-means++ (Arthur and Vassilvitskii, 2007) from `seed`; at most `rounds` rounds (Dhillon and Modha, 2001).
    """
    rng = np.random.default_rng(seed)
    centres = points[[int(rng.integers(len(points)))]]
    far = 1 - points @ centres[0]
    while len(centres) < min(k, len(points)) and far.max() > 1e-6:
        chance = np.maximum(far, 0).astype(np.float64) ** 2
        pick = int(rng.choice(len(points), p=chance / chance.sum()))
        centres = np.concatenate([centres, points[[pick]]])
        far = np.minimum(far, 1 - points @ points[pick])
    of = np.zeros(len(points), dtype=np.int64)
    for turn in range(rounds):
        nearest = (points @ centres.T).argmax(axis=1)
        if turn and np.array_equal(nearest, of):
            break
        of = nearest
        sums = (of == np.arange(len(centres))[:, None]).astype(np.float32) @ points
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)
    order = np.argsort(-np.bincount(of, minlength=len(centres)), kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back[of], centres[order]
