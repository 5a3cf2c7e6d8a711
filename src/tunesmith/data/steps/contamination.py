"""Contamination: rows that hold what the model will be tested on.

A row is contaminated where it shares a run of 13 words with a prompt or an answer of an evaluation file (Brown et al., 2020,
arXiv 2005.14165, appendix C; also lm-evaluation-harness and datatrove), has a shorter prompt word for word, or asks
nearly what an evaluation row asks (MinHash, as near duplicates).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tunesmith.data import contaminated, sources
from tunesmith.data.records import Record
from tunesmith.data.rows import Rows
from tunesmith.data.steps.near_duplicates import common
from tunesmith.errors import InputError

ORDER = 50
DEFAULT = False
Entry = str | dict[str, Any]


def check(against: list[Entry] | None = None) -> None:
    """InputError where no evaluation file is named, or one is not there."""
    if not against:
        raise InputError("prepare.contamination needs the evaluation files, such as {against: [test.jsonl]}.")
    for source in sources.parse(against):
        sources.places(source)


class Test(NamedTuple):
    """An evaluation file: its name, its records, and the index of their runs."""

    name: str
    records: Sequence[Record]
    runs: contaminated.Index


class Found(NamedTuple):
    """What a row shares with one evaluation row: of test number `test` its record number `row`; `share` of the row."""

    test: int
    row: int
    share: float
    reason: str


def apply(
    rows: Rows,
    *,
    against: list[Entry] | None = None,
    n: Annotated[int, Field(ge=3, le=50)] = 13,
    near: bool = True,
    action: Literal["drop", "mark"] = "drop",
) -> dict[str, Any]:
    """Drop (or only mark) the rows that share a run of n words with an evaluation file of `against`. Returns facts.

    An entry is a path, or a mapping with path, format, columns and split as in `data`. `near` also finds rows that ask nearly
    what an evaluation row asks, up to 15% of the words edited. Writes the column "contamination": the share of a row's runs that
    are found, or its similarity to the nearest question, of several files the largest.
    """
    check(against)
    tests = [_test(entry, n) for entry in against or []]
    column = rows.column("contamination")
    met: list[set[int]] = [set() for _ in tests]
    holding: list[dict[str, int]] = [{"shares": 0, "asks": 0} for _ in tests]
    total = 0
    for found_in in (_by_runs(rows, tests, met), _by_question(rows, tests) if near else ()):
        for id_, found in found_in:
            total += 1
            column[id_] = found.share
            met[found.test].add(found.row)
            holding[found.test][found.reason.split()[0]] += 1
            if action == "drop":
                _drop(rows, id_, tests[found.test], found)
        alive = np.flatnonzero(rows.alive)
        column[alive] = np.nan_to_num(column[alive])
    table = [
        [t.name, len(t.records), len(m), h["shares"], h["asks"]] for t, m, h in zip(tests, met, holding, strict=True)
    ]
    return facts(table, total, n, action)


def _test(entry: Entry, n: int) -> Test:
    records = sources.load([entry]).records
    return Test(str(entry["path"] if isinstance(entry, Mapping) else entry), records, contaminated.index(records, n))


def _by_runs(rows: Rows, tests: list[Test], met: list[set[int]]) -> Iterator[tuple[int, Found]]:
    """Yield (id, what it shares most of) of the rows with runs of words of a test; note every test row that is met."""
    for id_, record in rows:
        best = None
        for at, test in enumerate(tests):
            numbers, share = contaminated.shared(record, test.runs)
            met[at].update(numbers.tolist())
            if len(numbers) and (best is None or share > best.share):
                best = Found(at, int(np.bincount(numbers).argmax()), share, "shares words with")
        if best:
            yield id_, best


def _by_question(rows: Rows, tests: list[Test]) -> Iterator[tuple[int, Found]]:
    """Yield (id, what it asks nearly) of the rows that are not found yet."""
    ids = [int(i) for i in np.flatnonzero(rows.alive) if not rows.columns["contamination"][i] > 0]
    template = common(rows, ids)
    for at, test in enumerate(tests):
        for id_, number, value in contaminated.edited(test.records, rows.__getitem__, ids, template):
            if not rows.columns["contamination"][id_] > 0:
                yield id_, Found(at, number, value, "asks nearly the same as")


def _drop(rows: Rows, id_: int, test: Test, found: Found) -> None:
    row = test.records[found.row].origin.row
    reason = f"{found.reason} row {row} of the evaluation file {test.name}"
    rows.drop(id_, reason, evaluation=test.name, row=row, share=round(found.share, 3))


def facts(table: list[list[Any]], found: int, n: int, action: str) -> dict[str, Any]:
    """Return the facts for the card: rows found per evaluation file, and how many of its own rows are met."""
    return {
        "summary": f"{found:,} rows share {n} words in a row (or a whole short prompt) with an evaluation file, or ask nearly the "
        f"same, and are {'dropped' if action == 'drop' else 'marked'}.",
        "numbers": {"contaminated": found, "evaluation_rows_met": sum(row[2] for row in table)},
        "tables": [
            {
                "title": "evaluation files",
                "columns": [
                    "file",
                    "its rows",
                    "of them found in the data",
                    "rows that share words",
                    "rows that ask nearly the same",
                ],
                "rows": table,
            }
        ],
    }
