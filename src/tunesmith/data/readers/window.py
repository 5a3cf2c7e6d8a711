"""A JSON list read item by item through a window on the file, so that only one item is in memory."""

import codecs
import json
import re
from typing import Any, BinaryIO

CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST = 10  # characters of a token that may be cut in its middle: -Infinity, \ud83d
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Window:
    """The characters of `f` (UTF-8) that are not read yet, from `at` in `text` on; `byte` is the place of text[at] in the file."""

    def __init__(self, f: BinaryIO, byte: int) -> None:
        self.f, self.byte = f, byte
        self.text, self.at = "", 0
        self._line, self._column = 1, 0  # of text[0]
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._wrong: UnicodeDecodeError | None = None
        self._done = False

    def line_of(self, at: int) -> int:
        """Return the line of the file, from 1, on which text[at] stands."""
        return self._line + self.text.count("\n", 0, at)

    def column_of(self, at: int) -> int:
        """Return the column of text[at], from 1."""
        before = self.text.rfind("\n", 0, at)
        return at - before if before >= 0 else self._column + at + 1

    def open(self) -> None:
        """Step over the bracket that opens a list or an object."""
        self._skip()
        self._step()

    def ends(self, first: bool, bracket: str = "]") -> bool:
        """Say whether the list (bracket "}": the object) ends here, else step to its next item; JSONDecodeError where neither is."""
        self._skip()
        if self._next == bracket:
            self._step()
            return True
        if not first:
            self._over(",")
        return False

    def key(self) -> str:
        """Return the key that stands here and step to its value; JSONDecodeError where there is none."""
        if self._next != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, self.at)
        key: str = self.item()[0]
        self._skip()
        self._over(":")
        return key

    def reach(self, key: str) -> bool:
        """Step to the list under `key` of the object that begins here; False where it has none."""
        self.open()
        first = True
        while not self.ends(first, "}"):
            first = False
            if self.key() == key and self._next == "[":
                return True
            self.item()
        return False

    def close(self) -> None:
        """Step over the other members of the object in which `reach` stopped."""
        while not self.ends(False, "}"):
            self.key()
            self.item()

    def finish(self) -> None:
        """JSONDecodeError where anything but white space follows."""
        self._skip()
        if self.at < len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def item(self) -> tuple[Any, str]:
        """Return the item that begins here and its source, and step over it; JSONDecodeError where it is broken."""
        size = CHUNK
        while True:
            wrong = None
            try:
                item, end = _scan(self.text, self.at)
            except StopIteration as stop:
                wrong = json.JSONDecodeError("Expecting value", self.text, stop.value)
            except json.JSONDecodeError as error:
                wrong = error
            if wrong is None and end < len(self.text):
                break
            may_go_on = wrong is None or wrong.msg.startswith("Unterminated") or wrong.pos >= len(self.text) - _LONGEST
            if may_go_on and self._more(size):
                size *= 2  # an item of many chunks is looked at a few times only
            elif wrong is not None:
                raise wrong
            else:
                break
        source = self.text[self.at : end]
        self.at = end
        self.byte += len(source) if source.isascii() else len(source.encode())
        return item, source

    @property
    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _over(self, mark: str) -> None:
        if self._next != mark:
            raise json.JSONDecodeError(f"Expecting '{mark}' delimiter", self.text, self.at)
        self._step()
        self._skip()

    def _step(self) -> None:
        self.at, self.byte = self.at + 1, self.byte + 1

    def _skip(self) -> None:
        """Step over white space."""
        while True:
            end = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self.at, self.byte = end, self.byte + end - self.at
            if end < len(self.text) or not self._more(CHUNK):
                return

    def _more(self, size: int) -> bool:
        """Put the file's next characters behind those not read yet; False at its end."""
        if self._wrong is not None:
            raise self._wrong
        if self._done:
            return False
        data = self.f.read(size)
        self._done = not data
        try:
            new = self._decoder.decode(data, self._done)
        except UnicodeDecodeError as error:  # said when all before it is read
            new, self._wrong = error.object[: error.start].decode(), error
        self._line, self._column = self.line_of(self.at), self.column_of(self.at) - 1
        self.text, self.at = self.text[self.at :] + new, 0
        return True
