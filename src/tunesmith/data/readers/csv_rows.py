"""Rows of CSV and TSV: their columns by the header's names, or by position."""

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.formats._common import RowError
from tunesmith.data.readers.json_rows import Found
from tunesmith.data.readers.packed import not_utf8, text
from tunesmith.data.records import Origin

LONGEST_NAME = 200  # characters; a header's cell beyond is a row's
LARGEST_CELL = 1 << 27
_SAMPLE = 1 << 20  # bytes by which a file's way of writing is found


class CsvRows:
    """The rows of a CSV (`tabs`: TSV) file. headless: its first line is a row, and its columns are "0", "1", ..."""

    whole = False

    def __init__(self, path: Path, packed: str | None, name: str, tabs: bool, headless: bool) -> None:
        self.path, self.packed, self.name, self.tabs, self.headless = path, packed, name, tabs, headless
        self.header: list[str] = []
        self.end = 0  # of the row read last
        self.style: dict[str, Any] = {}

    def rows(self) -> Found:
        """Yield (number, row, first byte) or what is wrong with a row; rows count from 1 below the header."""
        csv.field_size_limit(LARGEST_CELL)
        with text(self.path, self.packed, self.name) as (f, mark):
            sample = f.read(_SAMPLE).decode("utf-8", "replace")
        if not sample.strip():
            raise RowError(Origin(self.name, 0), None, "empty_file", "the file is empty.")
        self.style = _style(sample, self.tabs)
        with text(self.path, self.packed, self.name) as (f, mark):
            lines = _Lines(f, mark)
            reader = csv.reader(lines, **self.style)
            number, line = 0, 0
            try:
                first = next((values for values in reader if values), [])
                listed, start = self._named(first, reader, mark, lines.byte)
                line = reader.line_num
                for values in listed:
                    at, start, line = start, lines.byte, reader.line_num
                    self.end = start
                    if not values:
                        continue
                    number += 1
                    if len(values) == len(self.header):
                        yield number, dict(zip(self.header, values, strict=True)), at
                    else:
                        yield self._wrong_columns(number, len(values), reader.line_num)
            except UnicodeDecodeError as error:
                wrong = not_utf8(error, lines.number, self.name)
                yield RowError(Origin(self.name, number + 1), None, wrong.kind, wrong.message)
            except csv.Error as error:
                found = f"line {reader.line_num} is broken CSV ({error}{_open_since(error, line)})."
                yield RowError(Origin(self.name, number + 1), None, "broken_csv", found)

    def row(self, data: bytes) -> dict[str, Any]:
        """Return the row whose bytes are the first of `data`."""
        values = next(v for v in csv.reader(io.StringIO(data.decode(), newline=""), **self.style) if v)
        return dict(zip(self.header, values, strict=True))

    def _named(self, first: list[str], reader: Any, start: int, after: int) -> tuple[Iterator[list[str]], int]:
        """Set the header from the first line's values; return the rows, and the byte at which they begin."""
        counted = [str(i) for i in range(len(first))]
        if (
            self.headless and not _are_names(first) and first not in (counted, ["", *counted[:-1]])
        ):  # pandas writes such headers
            self.header = counted
            return chain([first], reader), start
        if self.headless and _are_names(first):
            self.header = counted
            return reader, after
        self.header = first = [cell.strip() for cell in first]
        repeated = next((cell for i, cell in enumerate(first) if cell and cell in first[:i]), None)
        long = next((cell for cell in first if len(cell) > LONGEST_NAME), None)
        if repeated is not None or long is not None:
            shown = f"a cell of {len(long):,} characters" if long is not None else f'"{repeated}" twice'
            raise RowError(
                Origin(self.name, 0),
                None,
                "no_header",
                f"the first line looks like a row, not like the columns' names (it has {shown}); put their names above it, or "
                "say which column is which by position, from 0: columns: {prompt: 0, completion: 1}.",
            )
        return reader, after

    def _wrong_columns(self, number: int, count: int, line: int) -> RowError:
        if self.headless and self.header[:1] == ["0"]:
            has = f"the first line has {len(self.header)}"
        else:
            has = f"the header has {len(self.header)} ({', '.join(self.header[:6])})"
        remedy = "; put quotes around a value that has the separator in it" if count > len(self.header) else ""
        found = f"line {line} has {count} values, {has}{remedy}."
        return RowError(Origin(self.name, number), None, "wrong_columns", found)


class _Lines:
    """The lines of a file as csv wants them; `byte`: where the next one begins, `number`: the line read last."""

    def __init__(self, f: BinaryIO, byte: int) -> None:
        self.f, self.byte, self.number = f, byte, 0
        self._more: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._more:
            line = self._more.pop()
            self.byte += len(line.encode())
            return line
        raw = next(self.f)
        self.number += 1
        line = raw.decode()
        if "\r" in line[:-2]:  # lines may end so too
            self._more = list(io.StringIO(line, newline=""))[::-1]
            return next(self)
        self.byte += len(raw)
        return line


def _are_names(first: list[str]) -> bool:
    """Say whether a first line names fields of the formats, and nothing else: it is no row, though columns are given by place."""
    from tunesmith.data.detect import all_formats

    fields = {field for module in all_formats().values() for field in module.FIELDS}
    return len(first) > 1 and all(len(cell) > 1 and cell.strip().lower() in fields for cell in first)


def _open_since(error: csv.Error, line: int) -> str:
    """Say where the quote may stand that nothing closes: in the row after the last whole one."""
    return f"; a quote is opened after line {line} and not closed" if "unexpected end" in str(error) else ""


def _style(sample: str, tabs: bool) -> dict[str, Any]:
    """Return csv.reader's arguments: what stands between cells, and whether quotes stand around them.

    Many TSV files have quotes in their text and none around cells: they are no CSV by the rules.
    """
    if not tabs:
        first = next((line for line in sample.splitlines() if line.strip()), "")
        mark = next((mark for mark in ",;\t|" if mark in first), ",")
        spaced = all(cell.startswith(" ") for cell in first.split(mark)[1:]) and mark in first
        return {"delimiter": mark, "strict": True, "skipinitialspace": spaced}
    style = {"delimiter": "\t", "strict": True}
    reader = csv.reader(io.StringIO(sample, newline=""), **style)  # type: ignore[arg-type]
    lines = sample.count("\n")
    try:
        for _ in reader:
            pass
    except csv.Error:
        if reader.line_num < lines or len(sample) < _SAMPLE // 4:  # not where the sample ends inside of a cell
            return {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    return style
