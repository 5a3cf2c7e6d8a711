"""Reports for people in CSV: what spreadsheets would run as a formula is shown as text. Data files are never written by this."""

import codecs
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.run import write_bytes

_COLUMNS = ("file", "row", "field", "kind", "severity", "message", "sample", "remedy")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def neutral(cell: Any) -> str:
    """Return a cell's text; with an apostrophe before it where a spreadsheet would take it for a formula (OWASP, CSV injection)."""
    text = "" if cell is None else str(cell)
    if isinstance(cell, (int, float)):
        return text
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table whole or not at all; InputError where the file cannot be written."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([neutral(row.get(column)) for column in columns] for row in rows)
    try:
        # Excel takes a file without the mark for Windows-1252
        write_bytes(Path(path), codecs.BOM_UTF8 + out.getvalue().encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_problems(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write an inspection's problems, one a line."""
    write_csv(path, _COLUMNS, ({"file": s["path"], **p} for s in report["sources"] for p in s["problems"]))
