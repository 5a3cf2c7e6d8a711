"""Which format a file's rows are of: found by looking at the first ones, named, and explained."""

from functools import cache
from types import ModuleType
from typing import Any

from tunesmith import registry
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin, Record
from tunesmith.errors import InputError, did_you_mean

PACKAGE = "data.formats"
_LOOKED_AT = 20


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
    for name, module in all_formats().items():
        why = module.matches(row)
        if why:
            return name, why
    return None


def check_columns(columns: Any, where: str) -> dict[str, str]:
    """Return `columns` ({our field: the file's column}), checked; InputError where a key is no field of any format."""
    if not isinstance(columns, dict) or not all(isinstance(v, str) for v in columns.values()):
        raise InputError(
            f'{where}: "columns" maps a field to a column of the file, for example {{instruction: question}}.'
        )
    fields = {field for module in all_formats().values() for field in module.FIELDS}
    for key in columns:
        if key not in fields:
            raise InputError(f'{where}: columns names "{key}", which no format reads.{did_you_mean(str(key), fields)}')
    return columns


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


def convert(row: dict[str, Any], origin: Origin, name: str, stated: bool = False) -> Record:
    """Return the row as a record; refuse a row of another format than the file's, unless the user stated the format."""
    module: Any = all_formats()[name]
    other = None if stated else best_match(row)
    if other and other[0] != name and (module.matches(row) or not set(module.FIELDS) & set(row)):
        message = (
            f"this row is of the format {other[0]} ({other[1]}) in a file of {name} rows; put the two in two files."
        )
        raise RowError(origin, None, "mixed_format", message)
    record: Record = module.convert(row, origin)
    return record


def _unknown(number: int, row: dict[str, Any], file: str) -> RowError:
    keys = ", ".join(list(row)[:10]) or "none"
    known = ", ".join(f"{name} ({module.SHAPE})" for name, module in all_formats().items())
    return RowError(
        Origin(file, number),
        None,
        "unknown_format",
        f"its fields ({keys}) are those of no known format. Known: {known}. Or say which column is which, "
        "for example columns: {prompt: question, completion: answer}.",
    )
