"""Relevance: how near each row is to examples of what the model is for, and, where wanted, only the nearest rows.

Nearness is the cosine of TF-IDF vectors of words (vectors.py), to the nearest example.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.data import sources, vectors
from tunesmith.data.ngrams import asked_and_answered
from tunesmith.data.records import Record
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError

ORDER = 80
DEFAULT = False
MOST_EXAMPLES = 1000
Entry = str | dict[str, Any]
Share = Annotated[float, Field(gt=0, le=1)]


def check(
    examples: list[Entry] | None = None,
    like: str | None = None,
    keep: float | None = None,
    threshold: float | None = None,
) -> None:
    """InputError where neither examples nor a description is given, a file is not there, or both limits are set."""
    if not examples and not (like or "").strip():
        raise InputError(
            "prepare.relevance needs what rows are to be relevant to: examples: [wanted.jsonl], or like: a description in words."
        )
    if keep is not None and threshold is not None:
        raise InputError("prepare.relevance.keep and .threshold both say which rows stay; give one.")
    for source in sources.parse(examples) if examples else []:
        sources.places(source)


def said(record: Record) -> str:
    """Return the text of a record that is compared: what it asks and what it answers."""
    asked, answered = asked_and_answered(record)
    return "\n".join([asked, *answered])


def apply(
    rows: Rows,
    *,
    examples: list[Entry] | None = None,
    like: str | None = None,
    keep: Share | None = None,
    threshold: Share | None = None,
) -> dict[str, Any]:
    """Write the column "relevance" (0 to 1), and drop rows below the threshold, or all but the nearest `keep` (a share of the rows).

    Neither: rows are only measured. Of more than 1,000 examples 1,000 are taken, drawn evenly. Returns facts.
    """
    check(examples, like, keep, threshold)
    wanted = [like] if like else []
    if examples:
        found = sources.load(examples).records
        wanted += [said(found[i]) for i in range(0, len(found), -(-len(found) // MOST_EXAMPLES))]
    known = vectors.Examples(wanted, vectors.rarity(said(record) for _, record in rows))
    column = rows.column("relevance")
    ids = []
    for id_, record in rows:
        column[id_] = known.similarity(said(record))
        ids.append(id_)
    values = column[ids]
    dropped = 0
    for at, reason in _dropped(values, keep, threshold):
        rows.drop(ids[at], reason, relevance=round(float(values[at]), 4))
        dropped += 1
    return facts(values, dropped, len(wanted))


def _dropped(values: np.ndarray[Any, Any], keep: float | None, threshold: float | None) -> list[tuple[int, str]]:
    """Return (place, reason) of the rows that go; of equal ones the later."""
    if threshold is not None:
        return [
            (int(i), f"relevance {values[i]:.3f}, at least {threshold:g} wanted")
            for i in np.flatnonzero(values < threshold)
        ]
    if keep is None:
        return []
    order = np.argsort(-values, kind="stable")[int(np.ceil(keep * len(values))) :]
    return [(int(i), f"relevance {values[i]:.3f}, not among the nearest {keep:.0%}") for i in np.sort(order)]


def facts(values: np.ndarray[Any, Any], dropped: int, examples: int) -> dict[str, Any]:
    """Return the facts for the card: how relevance is spread."""
    edges = np.linspace(0, max(float(values.max(initial=0)), 0.05), 21)
    return {
        "summary": f"median relevance {np.median(values) if len(values) else 0:.3f} to {examples:,} example"
        f"{'s' * (examples != 1)}; {dropped:,} rows dropped.",
        "numbers": {"examples": examples, "median": round(float(np.median(values)), 4) if len(values) else 0.0},
        "histograms": [
            {
                "title": "relevance",
                "edges": [round(float(e), 4) for e in edges],
                "counts": np.histogram(values, bins=edges)[0].tolist(),
            }
        ],
    }
