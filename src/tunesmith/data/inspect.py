"""`tunesmith data inspect`: what a data set is and everything that is wrong with it, row by row, without stopping."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.data import detect, files
from tunesmith.data.checks import answers, encoding, personal, tools, turns
from tunesmith.data.checks.duplicates import Duplicates
from tunesmith.data.checks.found import Found, masked
from tunesmith.data.checks.items import item
from tunesmith.data.checks.labels import Labels
from tunesmith.data.checks.languages import Languages
from tunesmith.data.checks.lengths import Lengths
from tunesmith.data.checks.sample import Sample
from tunesmith.data.checks.schema import Schema
from tunesmith.data.checks.tokens import SAMPLE, measure, source_of
from tunesmith.data.converting import made_of
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import KINDS, Origin, Record
from tunesmith.data.sources import Source, parse, places
from tunesmith.errors import InputError

_CHECKS = (turns.check, tools.check, encoding.check, answers.check, personal.check)
_LOOKED_AT, _PATIENCE = 20, 10_000  # good rows from which the format is told, and broken ones before them
Row = tuple[int, dict[str, Any]]


def inspect(
    entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str,
    model: str | None = None,
    max_length: int | None = None,
    sample: int = SAMPLE,
    limits: bool = True,
    tell: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Return {"sources": [{"path", "source", "format", "why", "rows", "records", "kinds", "fields", "labels", "languages", "characters",
    "problems", "counts", "more", "error"}], "tokens"}.

    One entry per file, read row by row in flat memory. Rows count from 1 (JSONL: the line). A problem is {"row" (null: the
    whole file), "field", "kind", "severity", "message", "sample", "remedy"}; at most 1,000 of a kind are listed, `counts`
    has all of them by kind, `more` those not listed. `error` is a sentence where the file cannot be read at all, else null.
    `tokens` are the lengths under `model`'s tokenizer and template (checks.tokens.measure), null without a model: of a
    sample where there are more than `sample` rows; `limits`: whether answers beyond max_length, or the model's context, are
    problems. `tell` hears how far it is. InputError only where there is no such file or model.
    """
    if model is not None:
        source_of(model)  # what is wrong with it is said before the files are read
    found: list[tuple[dict[str, Any], Found]] = []
    duplicates = Duplicates()
    kept: Sample[Record] | None = None if model is None else Sample(sample)
    for source, file in _files(parse(entries)):
        problems = Found()
        duplicates.begin(str(file), problems)
        found.append((_inspect_file(file, source, problems, duplicates, kept, tell), problems))
    tokens = None
    if model is not None and kept and kept.seen:
        tokens, notes = measure(kept, model, max_length, limits)
        by_file = {report["path"]: problems for report, problems in found}
        known = {(file, p["row"]) for file, problems in by_file.items() for p in problems.listed["special_token"]}
        for origin, kind, message, excerpt in notes:
            if kind != "special_token" or (origin.file, origin.row) not in known:
                by_file[origin.file].add(kind, origin.row, None, message, excerpt)
    for report, problems in found:
        report |= {"problems": problems.problems(), "counts": dict(problems.counts), "more": problems.more()}
    return {"sources": [report for report, _ in found], "tokens": tokens}


def refuse_unreadable(report: Mapping[str, Any]) -> None:
    """InputError where an inspected file could not be read at all."""
    errors = [source["error"] for source in report["sources"] if source["error"]]
    if errors:
        more = (
            f" ({len(errors) - 1} more file{'s' * (len(errors) > 2)} cannot be read either.)" if len(errors) > 1 else ""
        )
        raise InputError(errors[0] + more)


def _files(sources: Sequence[Source]) -> Iterator[tuple[Source, files.Place]]:
    """Yield every file; of a folder those of its other splits too, for a prompt must not be in two of them."""
    expanded = [(source, places(source)[0]) for source in sources]  # a missing file is said before any is read
    for source, found in expanded:
        if source.split == "train" and Path(source.path).expanduser().is_dir():
            for split in ("validation", "test"):
                with contextlib.suppress(InputError):  # the folder has none
                    found += [place for place in places(replace(source, split=split))[0] if place not in found]
        yield from ((source, place) for place in found)


def _inspect_file(
    file: files.Place,
    source: Source,
    found: Found,
    duplicates: Duplicates,
    kept: Sample[Record] | None,
    tell: Callable[[str], object] | None,
) -> dict[str, Any]:
    """Return what one file is; its problems go to `found`."""
    report: dict[str, Any] = {
        "path": str(file),
        "source": source.path,
        "format": None,
        "why": None,
        "rows": 0,
        "records": 0,
        "error": None,
    }
    schema, sets = Schema(), (Labels(), Languages(), Lengths())
    kinds: Counter[str] = Counter()
    try:
        for number, row, made in _converted(
            _rows(_counted(file, report, tell), source, report, found), source, report, found
        ):
            schema.see(number, row)
            for record in made:
                kinds[KINDS[type(record)]] += 1
                one = item(number, row, record)
                for check in _CHECKS:
                    check(one, found)
                for state in (duplicates, *sets):
                    state.see(one)
                if kept:
                    kept.see(record, len(one.text))
    except RowError as error:  # of the whole file: no format, no UTF-8, empty
        _broken(error, found)
        report["error"] = str(error)
    except InputError as error:  # of the system, or the hub
        found.add("unreadable", None, None, str(error))
        report["error"] = str(error)
    schema.end(found, detect.all_formats()[report["format"]].FIELDS if report["format"] else ())
    duplicates.end()
    for state in sets:
        state.end(found)
    labels, languages, lengths = sets
    return report | {
        "records": kinds.total(),
        "kinds": dict(kinds),
        "fields": schema.fields(),
        "labels": labels.counts(),
        "languages": languages.shares(),
        "characters": lengths.summary(),
    }


def _converted(
    rows: Iterator[Row], source: Source, report: dict[str, Any], found: Found
) -> Iterator[tuple[int, dict[str, Any], list[Record]]]:
    """Yield the rows with their records; those that make none are noted."""
    for number, row in rows:
        try:
            made = made_of(row, source, Origin(report["path"], number), report["format"])
        except RowError as error:
            _broken(error, found)
        else:
            yield number, row, made


def _counted(
    file: files.Place, report: dict[str, Any], tell: Callable[[str], object] | None
) -> Iterator[Row | RowError]:
    for one in files.stream(file):
        report["rows"] += 1
        if tell and report["rows"] % 5000 == 0:
            tell(f"{report['path']}: {report['rows']:,} rows")
        yield one


def _rows(items: Iterator[Row | RowError], source: Source, report: dict[str, Any], found: Found) -> Iterator[Row]:
    """Yield the rows as `convert` takes them, those that cannot be read noted; the format is told from the first good ones."""
    name = report["path"]
    head: list[Row | RowError] = []
    good: list[Row] = []
    for one in items:
        head.append(one)
        if not isinstance(one, RowError):
            good.append(one)
        if len(good) == _LOOKED_AT or len(head) == _PATIENCE:
            break
    columns = source.columns or {}
    if good and source.format is not None:
        report |= {"format": source.format, "why": "stated by you"}
    elif good:
        first = [one for one in detect.rows(good, "text", name, columns) if not isinstance(one, RowError)]
        try:
            report["format"], report["why"] = detect.detect(first or good, name)
        except RowError:
            for one in chain(head, items):  # to count them all
                if isinstance(one, RowError):
                    _broken(one, found)
            raise
    every = chain(head, items)
    for one in detect.rows(every, report["format"], name, columns, source.labels) if good else every:
        if isinstance(one, RowError):
            _broken(one, found)
        else:
            yield one


def _broken(error: RowError, found: Found) -> None:
    found.add(error.kind, error.origin.row or None, error.field, masked(error.message))
