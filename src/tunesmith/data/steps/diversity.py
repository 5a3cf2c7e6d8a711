"""Diversity: how many different things a set says, as numbers for the card; it drops nothing."""

from collections import Counter
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.data import vectors
from tunesmith.data.ngrams import asked_and_answered, runs, words
from tunesmith.data.rows import Rows

ORDER = 120
DEFAULT = True
_NEAREST = 1000  # rows of the sample that are compared with each other
_FILLERS = (
    "a an the of to in on for and or with from by at as is are was be this that these those my your his her our their its some any"
    " me us you it i"
)
_FILLER = frozenset(_FILLERS.split())


def distinct(texts: list[list[str]], n: int) -> float:
    """Return the share of different ones among all runs of n words, distinct-n (Li et al., 2016, arXiv 1510.03055); 0 of none."""
    listed = [run for found in texts if len(found) >= n for run in runs(found, n)]
    return len(set(listed)) / max(len(listed), 1)


def opening(found: list[str]) -> tuple[str, str] | None:
    """Return the first word of an instruction and the first one after it that is no filler ("write", "poem"); None of no words."""
    if not found:
        return None
    return found[0], next((w for w in found[1:8] if w not in _FILLER and w[0].isalnum()), "")


def effective(sizes: list[int]) -> float:
    """Return how many clusters of equal size would be as diverse, exp of the entropy of the shares (Hill's number of order 1)."""
    shares = np.array([s for s in sizes if s], dtype=np.float64)
    shares /= max(shares.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def apply(
    rows: Rows,
    *,
    clusters: Annotated[int, Field(ge=2, le=200)] = 20,
    sample: Annotated[int, Field(ge=10, le=20_000)] = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return facts on a sample of rows drawn evenly: distinct-n, nearest neighbours, clusters of words, openings of prompts.

    Numbers of sets are comparable where their samples are of one size: distinct-n falls as a sample grows.
    """
    ids = np.flatnonzero(rows.alive)
    drawn = ids[:: max(1, -(-len(ids) // sample))]
    asked, answered = [], []
    for id_ in drawn.tolist():
        prompt, answers = asked_and_answered(rows[id_])
        asked.append(prompt)
        answered.append("\n".join(answers))
    said = [words(text) for text in answered]
    numbers = {f"distinct_{n}": round(distinct(said, n), 4) for n in (1, 2, 3)}
    whole = [f"{a}\n{b}" for a, b in zip(asked, answered, strict=True)]
    idf = vectors.rarity(whole)
    points = vectors.folded(whole, idf)
    near = nearest(points[:: max(1, -(-len(points) // _NEAREST))])
    of, _ = vectors.clusters(points, clusters, seed)
    sizes = np.bincount(of).tolist() if len(of) else []
    numbers |= {
        "sampled": len(drawn),
        "mean_nearest_similarity": round(float(near.mean()), 4) if len(near) else 0.0,
        "effective_clusters": round(effective(sizes), 2),
        "clusters": len(sizes),
    }
    return facts(numbers, near, topics(whole, of, sizes), openings([words(a) for a in asked]))


def nearest(points: vectors.Floats) -> vectors.Floats:
    """Return the cosine of each point and the nearest other, (N,); empty of fewer than two."""
    if len(points) < 2:
        return np.empty(0, dtype=np.float32)
    cosines = points @ points.T
    np.fill_diagonal(cosines, -1)
    found: vectors.Floats = cosines.max(axis=1).clip(0, 1)
    return found


def topics(texts: list[str], of: vectors.Places, sizes: list[int]) -> list[list[Any]]:
    """Return [cluster, rows, share, its words]: those that most more of its rows have than of all."""
    everywhere: Counter[str] = Counter()
    inside: list[Counter[str]] = [Counter() for _ in sizes]
    for text, cluster in zip(texts, of.tolist(), strict=True):
        found = {w for w in words(text) if len(w) > 2 or not w.isascii()}
        everywhere.update(found)
        inside[cluster].update(found)
    table = []
    for cluster, (size, counts) in enumerate(zip(sizes, inside, strict=True)):
        lift = {w: n / size - everywhere[w] / len(texts) for w, n in counts.items() if n > 1 or size < 3}
        best = sorted(lift, key=lambda w: (-lift[w], w))[:6]
        table.append([cluster + 1, size, round(size / len(texts), 4), " ".join(best)])
    return table


def openings(prompts: list[list[str]]) -> list[list[Any]]:
    """Return [first word, next word, prompts, share] of the 20 most frequent openings (as in Wang et al., 2022, figure 2)."""
    counts = Counter(found for found in map(opening, prompts) if found)
    total = max(counts.total(), 1)
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]
    return [[first, second, n, round(n / total, 4)] for (first, second), n in listed]


def facts(
    numbers: dict[str, Any], near: vectors.Floats, table: list[list[Any]], begun: list[list[Any]]
) -> dict[str, Any]:
    """Return the facts for the card."""
    edges = [round(i / 20, 2) for i in range(21)]
    shares = " / ".join(f"{numbers[f'distinct_{n}']:.3f}" for n in (1, 2, 3))
    return {
        "summary": f"distinct-1/2/3 of the answers {shares}; as diverse as {numbers['effective_clusters']:.1f} equal clusters "
        f"of {numbers['clusters']} (sample of {numbers['sampled']:,}).",
        "numbers": numbers,
        "histograms": [
            {
                "title": "similarity to the nearest other row",
                "edges": edges,
                "counts": np.histogram(near, bins=edges)[0].tolist(),
            }
        ],
        "tables": [
            {"title": "clusters", "columns": ["cluster", "rows", "share", "words"], "rows": table},
            {"title": "how prompts begin", "columns": ["first word", "then", "prompts", "share"], "rows": begun},
        ],
    }
