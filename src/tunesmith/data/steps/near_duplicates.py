"""Near duplicates: rows that say almost the same, one of which is kept.

Two rows are near duplicates where their words and pairs of neighbouring words overlap by `threshold` (Jaccard) and they do not
differ in what matters (copies.py): a prompt with another answer, a template or a text with another question, a sum with other
numbers stay. Candidates come from MinHash (minhash.py), and every one is checked on the rows themselves.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tunesmith.data import minhash
from tunesmith.data.copies import said, similarity
from tunesmith.data.ngrams import asked_and_answered, shingles, words
from tunesmith.data.rows import Rows

ORDER = 40
DEFAULT = True
_TEMPLATE = 0.1  # what more than this share of the prompts have in common tells them apart no more
_SAMPLE = 5000  # rows in which templates are looked for


def apply(
    rows: Rows,
    *,
    threshold: Annotated[float, Field(ge=0.3, le=1)] = 0.55,
    keep: Literal["first", "longest", "all"] = "first",
) -> dict[str, Any]:
    """Drop rows that are near duplicates of a kept one: of each group the first or the longest is kept, or all.

    Writes the column "cluster": the number of the first row of each row's group (its own where it is alone), by which the
    split keeps groups on one side. Returns facts.
    """
    ids = np.array([id_ for id_, _ in rows], dtype=np.int64)
    template = common(rows, ids)
    sizes = np.zeros(len(ids), dtype=np.int64)
    sketch = minhash.signatures(_sets(rows, template, sizes), len(ids))
    order = np.argsort(-sizes, kind="stable") if keep == "longest" else np.arange(len(ids))
    pairs, _ = minhash.candidates(sketch[order] if keep == "longest" else sketch, threshold)
    del sketch
    ids_in_order = ids[order]
    said_of = lru_cache(maxsize=1024)(lambda at: said(rows[int(ids_in_order[at])], template))
    clusters, copies = settle(pairs, lambda a, b: similarity(said_of(a), said_of(b)), threshold)
    _mark(rows, ids, ids_in_order, clusters)
    if keep != "all":
        for at, (of, found) in sorted(copies.items()):
            kept = int(ids_in_order[of])
            reason = f"nearly repeats {rows[kept].origin}"
            rows.drop(int(ids_in_order[at]), reason, of=kept, similarity=round(found, 3))
    return facts(copies, len(ids), threshold, keep)


def common(rows: Rows, ids: Sequence[int] | np.ndarray[Any, Any]) -> frozenset[str]:
    """Return the shingles that stand in more than a tenth of the prompts (of 5,000 rows drawn evenly), at least in 20."""
    drawn = ids[:: max(1, -(-len(ids) // _SAMPLE))]
    seen: Counter[str] = Counter()
    for id_ in drawn:
        seen.update(set(shingles(words(asked_and_answered(rows[int(id_)])[0]))))
    least = max(20, _TEMPLATE * len(drawn))
    return frozenset(s for s, count in seen.items() if count > least)


def _sets(rows: Rows, template: frozenset[str], sizes: np.ndarray[Any, Any]) -> Iterator[list[str]]:
    """Yield each row's shingles, and note its words in `sizes`; rows without words get one of their own, which nothing shares."""
    for at, (id_, record) in enumerate(rows):
        text, texts = asked_and_answered(record)
        asked, answered = words(text), [words(t) for t in texts]
        sizes[at] = len(asked) + sum(map(len, answered))
        found = [s for s in shingles(asked) if s not in template]
        for answer in answered:
            found += shingles(answer)
        yield found or [f"\0{id_}"]


def settle(
    pairs: minhash.Pairs, measure: Callable[[int, int], float], threshold: float
) -> tuple[minhash.Clusters, dict[int, tuple[int, float]]]:
    """Return clusters of rows whose similarity is at least the threshold, and {copy: (the kept row it is a copy of, similarity)}.

    The rows are gone through in order. One that is no copy of a kept row is kept, though it be a copy of a copy.
    """
    clusters = minhash.Clusters()
    copies: dict[int, tuple[int, float]] = {}
    for b, group in groupby(pairs.tolist(), key=itemgetter(1)):
        tried: dict[int, float] = {}
        for a, _ in group:
            tried[a] = measure(a, b)
            if tried[a] >= threshold:
                clusters.join(a, b)
                kept = copies[a][0] if a in copies else a
                if kept not in tried:
                    tried[kept] = measure(kept, b)
        kept_near = [(value, -a) for a, value in tried.items() if value >= threshold and a not in copies]
        if kept_near:
            value, a = max(kept_near)
            copies[b] = (-a, value)
    return clusters, copies


def _mark(rows: Rows, ids: np.ndarray[Any, Any], in_order: np.ndarray[Any, Any], clusters: minhash.Clusters) -> None:
    column = rows.column("cluster")
    column[ids] = ids
    groups: dict[int, list[int]] = defaultdict(list)
    for at in clusters.members():
        groups[clusters.of(at)].append(int(in_order[at]))
    for name, members in groups.items():
        members.append(int(in_order[name]))
        column[members] = min(members)


def facts(copies: dict[int, tuple[int, float]], count: int, threshold: float, keep: str) -> dict[str, Any]:
    """Return the facts for the card: how many, in groups of what size, how similar."""
    of = Counter(kept for kept, _ in copies.values())
    sizes = Counter(n + 1 for n in of.values())
    edges = [round(threshold + (1 - threshold) * i / 10, 3) for i in range(11)]
    counts = np.histogram([found for _, found in copies.values()], bins=edges)[0].tolist()
    done = "marked" if keep == "all" else "dropped"
    return {
        "summary": f"{len(copies):,} of {count:,} rows nearly repeat another ({len(of):,} group{'s' * (len(of) != 1)}, similarity at least "
        f"{threshold:g}) and are {done}.",
        "numbers": {"near_duplicates": len(copies), "groups": len(of), "largest_group": max(sizes, default=0)},
        "histograms": [{"title": "similarity of near duplicates", "edges": edges, "counts": counts}],
        "tables": [
            {"title": "groups by size", "columns": ["rows", "groups"], "rows": [list(x) for x in sorted(sizes.items())]}
        ],
    }
