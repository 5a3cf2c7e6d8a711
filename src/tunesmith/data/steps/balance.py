"""Balance: no category drowns the others. Rows are dropped or repeated, so every way of training honours it.

Which rows go, and which are repeated once more, is drawn by a hash of seed and content: the rows' order does not decide it.
"""

from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tunesmith.data import vectors
from tunesmith.data.content import answer_texts
from tunesmith.data.ngrams import asked_and_answered
from tunesmith.data.records import KINDS, Record, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.splits import hashed, scrambled
from tunesmith.data.steps.exact_duplicates import key
from tunesmith.errors import InputError, did_you_mean

ORDER = 100
DEFAULT = False
MISSING = "(none)"
BUILT_IN = ("label", "kind", "topic", "cluster", "language")
_SAMPLE = 5000


class Plan(NamedTuple):
    """How many rows of a category stay of those there are, and how many times more rows of it are shown again."""

    keep: int
    repeat: int


def plan(sizes: dict[str, int], mode: str, most: int | None, most_repeats: int) -> dict[str, Plan]:
    """Return the plan for each category.

    cap: at most `most` rows each. reweight: none is dropped, the smaller are repeated up to the largest. stratify: `most` rows
    each (the median size where left out), by dropping or repeating. No row comes more than `most_repeats` times in all.
    """
    target = (
        most
        if most is not None
        else max(sizes.values())
        if mode == "reweight"
        else int(np.median(list(sizes.values())))
    )
    out = {}
    for name, size in sizes.items():
        kept = size if mode == "reweight" else min(size, target)
        more = 0 if mode == "cap" else min(max(target - size, 0), size * (most_repeats - 1))
        out[name] = Plan(kept, more)
    return out


def category(record: Record, by: str) -> str:
    """Return the category of a record: the verdict or the answer (label), its kind, or its field of that name."""
    if by == "kind":
        return KINDS[type(record)]
    if by == "label":
        return (
            ("good" if record.good else "bad")
            if isinstance(record, Verdict)
            else "\n".join(answer_texts(record)).strip()
        )
    value = record.extra.get(by)
    return MISSING if value is None or value == "" else str(value)


def apply(
    rows: Rows,
    *,
    by: Annotated[str, Field(min_length=1)] = "label",
    mode: Literal["cap", "reweight", "stratify"] = "cap",
    most: Annotated[int, Field(ge=1)] | None = None,
    most_repeats: Annotated[int, Field(ge=1, le=100)] = 4,
    topics: Annotated[int, Field(ge=2, le=200)] = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Balance the rows by a field, "label" (a verdict, or the answer), "kind", "topic" (clusters of words), or an earlier step's
    column "language" or "cluster". Returns facts.
    """
    check(mode, most)
    ids = np.flatnonzero(rows.alive)
    names = _names(rows, ids, by, topics, seed)
    sizes = dict(sorted(Counter(names).items()))
    _refuse_no_category(sizes, len(ids), by, rows)
    order = scrambled(np.array([hashed(key(rows[i]).hex()) for i in ids.tolist()], dtype=np.int64), seed, "balance")
    plans = plan(sizes, mode, most, most_repeats)
    places: dict[str, list[int]] = {name: [] for name in sizes}
    for at, name in enumerate(names):
        places[name].append(at)
    for name, mine in places.items():
        _carry_out(
            rows, [int(ids[at]) for at in sorted(mine, key=lambda at: (order[at], at))], plans[name], name, sizes[name]
        )
    return facts(sizes, plans, by)


def check(mode: str = "cap", most: int | None = None) -> None:
    """InputError where a cap is wanted but not given."""
    if mode == "cap" and most is None:
        raise InputError("prepare.balance needs most, the rows a category may have at most, such as most: 1000.")


def _names(rows: Rows, ids: np.ndarray[Any, Any], by: str, topics: int, seed: int) -> list[str]:
    """Return the category of each row, in the order of `ids`."""
    if by == "topic":
        return [str(t + 1) for t in _topics(rows, ids, topics, seed)]
    if by in ("language", "cluster"):
        if by not in rows.columns:
            step = "language" if by == "language" else "near_duplicates"
            raise InputError(f'prepare.balance.by is "{by}", which the step {step} finds out; switch it on.')
        return [MISSING if np.isnan(v) else str(int(v)) for v in rows.columns[by][ids]]
    return [category(rows[i], by) for i in ids.tolist()]


def _topics(rows: Rows, ids: np.ndarray[Any, Any], topics: int, seed: int) -> list[int]:
    """Return the cluster of words each row is nearest to; the clusters are found in 5,000 rows drawn evenly."""

    def said(id_: int) -> str:
        asked, answered = asked_and_answered(rows[id_])
        return "\n".join([asked, *answered])

    drawn = [said(i) for i in ids[:: max(1, -(-len(ids) // _SAMPLE))].tolist()]
    idf = vectors.rarity(drawn)
    centres = vectors.clusters(vectors.folded(drawn, idf), topics, seed)[1]
    return [int((centres @ vectors.folded([said(i)], idf)[0]).argmax()) for i in ids.tolist()]


def _refuse_no_category(sizes: dict[str, int], count: int, by: str, rows: Rows) -> None:
    """InputError where no row has the field, or its values are no categories: nearly every row has its own."""
    if list(sizes) == [MISSING]:
        fields = {name for _, record in zip(range(100), (r for _, r in rows), strict=False) for name in record.extra}
        raise InputError(f'prepare.balance.by is "{by}", which no row has.{did_you_mean(by, [*BUILT_IN, *fields])}')
    if len(sizes) > max(50, count // 2):
        raise InputError(
            f'prepare.balance.by is "{by}", which has {len(sizes):,} values in {count:,} rows; that is no category.'
        )


def _carry_out(rows: Rows, ids: list[int], wanted: Plan, name: str, size: int) -> None:
    """Drop or repeat rows of one category, `ids` in the order in which they are kept and repeated."""
    shown = name if len(name) <= 40 else f"{name[:39]}…"
    for id_ in ids[wanted.keep :]:
        rows.drop(id_, f'category "{shown}" has {size:,} rows, {wanted.keep:,} wanted', category=shown)
    for time in range(wanted.repeat):
        id_ = ids[time % size]
        origin = rows[id_].origin
        rows.add(rows[id_], f'repeats {origin} to balance "{shown}"', from_=[id_], time=2 + time // size)


def facts(sizes: dict[str, int], plans: dict[str, Plan], by: str) -> dict[str, Any]:
    """Return the facts for the card: rows per category before and after."""
    after = {name: plans[name].keep + plans[name].repeat for name in sizes}
    listed = sorted(sizes, key=lambda name: (-sizes[name], name))
    shown = [
        [name if len(name) <= 40 else f"{name[:39]}…", sizes[name], after[name], plans[name].repeat]
        for name in listed[:100]
    ]
    largest = max(after.values()) / max(sum(after.values()), 1)
    return {
        "summary": f"{len(sizes):,} categories by {by}: the largest has {largest:.1%} of the rows, "
        f"before {max(sizes.values()) / sum(sizes.values()):.1%}.",
        "numbers": {"categories": len(sizes), "smallest": min(after.values()), "largest": max(after.values())},
        "tables": [
            {"title": f"rows by {by}", "columns": ["category", "before", "after", "of them repeated"], "rows": shown}
        ],
    }
