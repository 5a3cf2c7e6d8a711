"""Rows of JSON: one document a line, a list of them, or a document that holds such a list."""

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.formats._common import RowError, json_type
from tunesmith.data.readers.packed import not_utf8, text
from tunesmith.data.readers.window import Window
from tunesmith.data.records import Origin

Item = tuple[int, dict[str, Any], int]
"""(the row's number for people, the row, the byte it begins at)."""
Found = Iterator[Item | RowError]

CHUNK = 1 << 18
_LOOKED_AT = 20
_LONGEST = 1 << 24  # bytes of a first line by which a file of the name .json is found to be JSON lines
# An escape of a surrogate that stands alone (and backslashes that only look like one, which is seen when the row is looked at).
_HALF = re.compile(r"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class JsonRows:
    """The rows of a JSON or JSON lines file. `lines`: its ending says one document a line."""

    def __init__(self, path: Path, packed: str | None, name: str, lines: bool) -> None:
        self.path, self.packed, self.name, self.lines = path, packed, name, lines
        self.end = 0  # of the row read last, or of one beyond
        self.whole = False  # a document that is read at once: its rows have no place of their own

    def rows(self) -> Found:
        """Yield (number, row, first byte) or what is wrong with a row; RowError where nothing can be read."""
        with text(self.path, self.packed, self.name) as (f, _):
            first = _first_character(f)
        if not first:
            raise RowError(Origin(self.name, 0), None, "empty_file", "the file is empty.")
        if first == b"[":
            return self._sorted(self._items())
        if self.lines or self._is_lines():
            return self._sorted(self._lines())
        if first == b"{" and self._has_data():
            return self._sorted(self._items("data"))
        return self._document()

    def row(self, data: bytes) -> dict[str, Any]:
        """Return the row whose bytes are the first of `data`."""
        item = _scan(data.decode("utf-8", "replace").lstrip(), 0)[0]
        return item if isinstance(item, dict) else {"text": item}

    def _lines(self) -> Iterator[tuple[int, Any, int] | RowError]:
        with text(self.path, self.packed, self.name) as (f, at):
            for number, raw in enumerate(f, 1):
                start, at = at, at + len(raw)
                self.end = at
                try:
                    line = raw.decode()
                    item, end = _scan(line, 0)
                    if len(line) - end > 1 and line[end:].strip(" \t\n\r"):
                        item = json.loads(line)
                except (ValueError, RecursionError, StopIteration):
                    if not raw.strip():
                        continue
                    hard = self._hard(raw, number)
                    if isinstance(hard, RowError):
                        yield hard
                        continue
                    line, item = hard
                yield self._refused(item, line, number) or (number, item, start)

    def _hard(self, raw: bytes, number: int) -> tuple[str, Any] | RowError:
        """Return a line that is not the plain case, and its document; or what is wrong with it."""
        try:
            line = raw.decode()
            return line, json.loads(line)
        except UnicodeDecodeError as error:
            return not_utf8(error, number, self.name)
        except (ValueError, RecursionError) as error:
            wrong = broken(self.name, number, error, f"line {number}")
            if number > 1:
                return wrong
            remedy = f"{wrong.message[:-1]}; expected one whole JSON object a line (a file of one over several lines is named .json)."
            return RowError(wrong.origin, None, wrong.kind, remedy)

    def _refused(self, item: Any, source: str, number: int) -> RowError | None:
        """Return what is wrong with a row that json reads all the same."""
        if number <= _LOOKED_AT and (twice := _repeated(source)) is not None:
            found = f'the row has the field "{twice}" twice; keep one of them.'
            return RowError(Origin(self.name, number), twice, "repeated_field", found)
        if ("\\ud" in source or "\\uD" in source) and _HALF.search(source):
            return self._half(item, number)
        return None

    def _half(self, item: Any, number: int) -> RowError | None:
        """Return the error of a row with a character that JSON's escapes left half of, which no tokenizer takes."""
        half = _SURROGATE.search(json.dumps(item, ensure_ascii=False, default=str))
        if half is None:
            return None
        found = (
            f"\\u{ord(half[0]):04x} is half of a character (a pair of such escapes makes one); remove it or mend it."
        )
        return RowError(Origin(self.name, number), None, "half_character", found)

    def _sorted(self, items: Iterator[tuple[int, Any, int] | RowError]) -> Found:
        """Yield the objects, and the strings as texts where the first rows are strings; anything else is wrong."""
        first = list(islice(items, _LOOKED_AT))
        texts = all(not isinstance(item, RowError) and isinstance(item[1], str) for item in first)
        for item in chain(first, items):
            if isinstance(item, RowError) or type(item[1]) is dict:
                yield item
            elif texts and isinstance(item[1], str):
                yield item[0], {"text": item[1]}, item[2]
            else:
                found = f'the row is {json_type(item[1])}, expected an object such as {{"text": ...}}.'
                yield RowError(Origin(self.name, item[0]), None, "not_object", found)

    def _is_lines(self) -> bool:
        """Say whether the first line is a document of its own and more follow: JSON lines under the name .json."""
        with text(self.path, self.packed, self.name) as (f, _):
            first = b""
            while not first.strip() and (first := f.readline(_LONGEST)):
                pass
            try:
                json.loads(first)
            except (ValueError, RecursionError):
                return False
            return any(raw.strip() for raw in f)

    def _document(self) -> Found:
        self.whole = True
        with text(self.path, self.packed, self.name) as (f, _):
            data = f.read()
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(error, data.count(b"\n", 0, error.start) + 1, self.name) from None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            if any(not isinstance(item, RowError) for item in self._sorted(self._lines())):
                self.whole = False
                return self._sorted(self._lines())  # JSON lines under the name .json, the first one broken
            line = f"line {error.lineno} of the file" if isinstance(error, json.JSONDecodeError) else "the file"
            raise broken(self.name, 0, error, line) from None
        return self._sorted(self._of(document, bool(_HALF.search(content))))

    def _of(self, document: Any, halves: bool) -> Iterator[tuple[int, Any, int] | RowError]:
        for number, item in enumerate(_list_in(document, self.name), 1):
            error = self._half(item, number) if halves else None
            yield error or (number, item, 0)

    def _has_data(self) -> bool:
        """Say whether the document is an object with a list under "data", which can be read item by item."""
        with text(self.path, self.packed, self.name) as (f, at):
            try:
                return Window(f, at).reach("data")
            except (ValueError, RecursionError):
                return False

    def _items(self, key: str | None = None) -> Iterator[tuple[int, Any, int] | RowError]:
        with text(self.path, self.packed, self.name) as (f, at):
            window = Window(f, at)
            number = 1
            try:
                if key is not None:
                    window.reach(key)
                window.open()
                while not window.ends(first=number == 1):
                    start = window.byte
                    item, source = window.item()
                    self.end = window.byte
                    yield self._refused(item, source, number) or (number, item, start)
                    number += 1
                if key is not None:
                    window.close()
                window.finish()
            except UnicodeDecodeError as wrong:
                yield not_utf8(wrong, window.line_of(len(window.text)), self.name)
            except json.JSONDecodeError as wrong:
                line, column = window.line_of(wrong.pos), window.column_of(wrong.pos)
                reason = f"line {line} of the file is broken JSON ({wrong.msg}, column {column})."
                yield RowError(Origin(self.name, number), None, "broken_json", reason)
            except (ValueError, RecursionError) as wrong:
                yield broken(self.name, number, wrong, f"line {window.line_of(window.at)} of the file")


def _repeated(source: str) -> str | None:
    """Return a key that an object of the document has twice: json keeps the last value, and says nothing."""
    found: list[str] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            found.append(next(key for i, key in enumerate(keys) if key in keys[:i]))

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(source, object_pairs_hook=seen)
    return found[0] if found else None


def broken(name: str, row: int, error: Exception, where: str) -> RowError:
    """Return the error of JSON that cannot be read."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
    return RowError(Origin(name, row), None, "broken_json", f"{where} is broken JSON ({reason}).")


def _first_character(f: BinaryIO) -> bytes:
    """Return the first byte that is no white space, b"" where there is none."""
    while block := f.read(CHUNK):
        if rest := block.lstrip():
            return rest[:1]
    return b""


def _list_in(document: Any, name: str) -> list[Any]:
    """Return the rows in a JSON document: the list itself, its "data", its only list of objects, or itself as one."""
    from tunesmith.data.detect import best_match

    if isinstance(document, dict):
        if isinstance(document.get("data"), list):
            return list(document["data"])
        if _is_columns(document):
            found = "the file holds columns, expected rows; pandas writes them by to_json(orient='records')."
            raise RowError(Origin(name, 0), None, "not_a_list", found)
        if best_match(document):
            return [document]
        lists = [v for v in document.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(lists) == 1:
            return list(lists[0])
    has = f" with the fields {', '.join(list(document)[:6])}" if isinstance(document, dict) and document else ""
    message = f'the file holds {json_type(document)}{has}, expected a list of rows or {{"data": [rows]}}.'
    raise RowError(Origin(name, 0), None, "not_a_list", message)


def _is_columns(document: dict[str, Any]) -> bool:
    """Say whether a document is a table by columns, each a list of its cells or, as pandas writes it, an object {"0": cell, ...}."""
    columns = list(document.values())
    if len(columns) < 2:
        return False
    if all(isinstance(column, dict) for column in columns):
        return all(column and list(column) == [str(i) for i in range(len(column))] for column in columns)
    lists = all(isinstance(column, list) and column and not isinstance(column[0], (dict, list)) for column in columns)
    return lists and len({len(column) for column in columns}) == 1
