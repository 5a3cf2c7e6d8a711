"""Which format a file's rows are of: found by looking at the first ones, named, and explained."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

from tunesmith import registry
from tunesmith.data.formats._common import RowError, shown
from tunesmith.data.records import Origin, Record
from tunesmith.errors import InputError, did_you_mean

Item = tuple[int, dict[str, Any]] | RowError
"""A row with its number, or what is wrong with it."""
PACKAGE = "data.formats"
_LOOKED_AT = 20
_COMMON = ["text", "messages", "prompt_completion", "alpaca", "preference", "verdict"]
_TABLE = re.compile(r"\.[ct]sv(\.gz|\.zst)?$", re.IGNORECASE)


@cache
def all_formats() -> dict[str, ModuleType]:
    """Return every format by name, the more telling ones first."""
    modules = {name: registry.load(PACKAGE, name) for name in registry.names(PACKAGE)}
    return dict(sorted(modules.items(), key=lambda item: item[1].RANK))


def detect(rows: list[tuple[int, dict[str, Any]]], file: str) -> tuple[str, str]:
    """Return (name, why) of the format most of the first 20 rows are of; RowError where none knows any of them."""
    first = [row for _, row in rows[:_LOOKED_AT]]
    votes = dict.fromkeys(all_formats(), 0)
    reasons: dict[str, str] = {}
    for row in first:
        found = best_match(row)
        if found:
            votes[found[0]] += 1
            reasons.setdefault(*found)
    name = max(reasons, key=lambda n: votes[n], default=None)  # of two as frequent, the one seen first
    if name is None:
        raise _unknown(rows[0][0], first[0], file)
    return name, reasons[name]


def best_match(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return (format's name, why) for one row, None where no format knows it."""
    for name, matches in _candidates(tuple(row)):
        why = matches(row)
        if why:
            return name, why
    return None


@lru_cache(maxsize=256)
def _candidates(keys: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Return (name, matches) of the formats a row with these fields may be of: rows of one file have few sets of fields.

    A module's SIGNS are fields of which its rows have one at least; without it any of its FIELDS will do.
    """
    modules: dict[str, Any] = all_formats()
    signs = {name: getattr(module, "SIGNS", module.FIELDS) for name, module in modules.items()}
    return [(name, modules[name].matches) for name in modules if not set(signs[name]).isdisjoint(keys)]


def check_columns(columns: Any, where: str) -> dict[str, str]:
    """Return `columns` ({our field: the file's column}), checked; InputError where a key is no field of any format.

    A column of a file without a header is named by its place, from 0, as a number or as digits.
    """
    named = isinstance(columns, dict) and all(isinstance(v, (str, int)) and v is not True for v in columns.values())
    if not named or any(isinstance(v, int) and (v < 0 or v is False) for v in columns.values()):
        raise InputError(
            f'{where}: "columns" maps a field to a column of the file, by its name or its place from 0, '
            "for example {instruction: question} or {text: 0, label: 1}."
        )
    fields = {field for module in all_formats().values() for field in module.FIELDS}
    for key in columns:
        if key not in fields:
            raise InputError(f'{where}: columns names "{key}", which no format reads.{did_you_mean(str(key), fields)}')
    return {key: str(value) for key, value in columns.items()}


def rename(row: dict[str, Any], columns: dict[str, str], origin: Origin) -> dict[str, Any]:
    """Return the row with the file's columns under our fields' names."""
    if not columns:
        return row
    for theirs in columns.values():
        if theirs not in row:
            hint = did_you_mean(theirs, row).replace(" Known:", " The row has:")
            raise RowError(origin, theirs, "missing_field", f'column "{theirs}" (named in columns) is missing.{hint}')
    taken = set(columns.values()) | set(columns)
    return {k: v for k, v in row.items() if k not in taken} | {ours: row[theirs] for ours, theirs in columns.items()}


def check_labels(labels: Any, where: str) -> dict[str, str]:
    """Return `labels` ({label in the file: what it is called}), its keys as text; InputError where it is no such mapping."""
    if not isinstance(labels, dict) or not labels or not all(isinstance(v, (str, int, float)) for v in labels.values()):
        raise InputError(f'{where}: "labels" says what each label is called, for example {{0: negative, 1: positive}}.')
    return {_label(key): v if isinstance(v, str) else _label(v) for key, v in labels.items()}


def relabel(row: dict[str, Any], labels: dict[str, str], origin: Origin) -> dict[str, Any]:
    """Return the row with its label (each, of a list) called as `labels` (from check_labels) says."""
    field = "labels" if "labels" in row and "label" not in row else "label"
    if field not in row:
        hint = did_you_mean(field, row).replace(" Known:", " The row has:")
        raise RowError(
            origin, field, "missing_field", f'field "{field}" (its values are named in labels) is missing.{hint}'
        )
    value = row[field]
    called = [labels.get(_label(item)) for item in (value if isinstance(value, list) else [value])]
    if None in called:
        known = ", ".join(list(labels)[:12])
        message = f'field "{field}" is {shown(value)}, which labels does not name (it names {known}); add it there.'
        raise RowError(origin, field, "unknown_label", message)
    others = {key: item for key, item in row.items() if key != "label_text"}  # what the labels were called
    return {**others, field: called if isinstance(value, list) else called[0]}


def _label(value: Any) -> str:
    """Return a label as text, the same for 1, 1.0, "1", and for true, "True"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (
        str(value).strip().lower()
        if isinstance(value, bool) or str(value).lower() in ("true", "false")
        else str(value).strip()
    )


def rows(
    items: Iterable[Item],
    name: str,
    file: str,
    columns: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
) -> Iterator[Item]:
    """Yield a file's rows as `convert` takes them: columns and labels renamed, messages of a tree joined to one row.

    What cannot be read is yielded as a RowError in its row's place. Of most formats one row is held at a time.
    """
    named = _named(items, file, columns or {}, labels)
    join: Any = getattr(all_formats()[name], "join", None)
    yield from join(named, file) if join else named


def _named(items: Iterable[Item], file: str, columns: dict[str, str], labels: dict[str, str] | None) -> Iterator[Item]:
    for item in items:
        if isinstance(item, RowError):
            yield item
            continue
        origin = Origin(file, item[0])
        try:
            row = rename(item[1], columns, origin)
            yield item[0], row if labels is None else relabel(row, labels, origin)
        except RowError as error:
            yield error


def convert(row: dict[str, Any], origin: Origin, name: str, stated: bool = False) -> list[Record]:
    """Return the records a row makes: one, or several of a tree or a log, numbered in their origin's `part`.

    Refuses a row of another format than the file's, unless the user stated the format, or the two are alike (a module's
    ALIKE names the formats whose rows may stand among its own).
    """
    module: Any = all_formats()[name]
    other = None if stated else best_match(row)
    if other and other[0] != name:
        if other[0] in getattr(module, "ALIKE", ()):
            module = all_formats()[other[0]]
        elif module.matches(row) or set(module.FIELDS).isdisjoint(row):
            message = (
                f"this row is of the format {other[0]} ({other[1]}) in a file of {name} rows; "
                f"put the two in two files, or state the format (format: {name}) to read all of them so."
            )
            raise RowError(origin, None, "mixed_format", message)
    made: Record | list[Record] = module.convert(row, origin)
    if not isinstance(made, list):
        return [made]
    return [record if not i else replace(record, origin=replace(origin, part=i)) for i, record in enumerate(made)]


def _unknown(number: int, row: dict[str, Any], file: str) -> RowError:
    """Return the error that names the row's fields, the formats nearest to them, and how to say which column is which."""
    keys = [key if len(key) <= 30 else key[:30] + "…" for key in list(row)[:10]]
    formats: dict[str, Any] = all_formats()
    words = {name: module.SHAPE.split(", ") for name, module in formats.items()}
    like = {n: sum(bool(get_close_matches(w, keys, 1, 0.7)) for w in ws) / len(ws) for n, ws in words.items()}
    near = sorted((name for name in formats if like[name]), key=lambda name: -like[name])[:4]
    known = ", ".join(f"{name} ({formats[name].SHAPE})" for name in near or _COMMON)
    place = ", or {text: 0, label: 1} where the file has no header" if _TABLE.search(file) else ""
    message = (
        f"its fields ({', '.join(keys) or 'none'}) are those of no known format. {'Nearest' if near else 'Known'}: {known}. "
        f"Say which column is which, for example columns: {{prompt: question, completion: answer}}{place}."
    )
    return RowError(Origin(file, number), None, "unknown_format", message)
