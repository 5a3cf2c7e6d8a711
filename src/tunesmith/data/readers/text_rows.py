"""A file of plain text: one row, of all that it says."""

from pathlib import Path
from typing import Any

from tunesmith.data.formats._common import RowError
from tunesmith.data.readers.json_rows import Found
from tunesmith.data.readers.packed import not_utf8, text
from tunesmith.data.records import Origin


class TextRows:
    """The one row of a text file."""

    whole = False

    def __init__(self, path: Path, packed: str | None, name: str) -> None:
        self.path, self.packed, self.name, self.end = path, packed, name, 0

    def rows(self) -> Found:
        """Yield (1, {"text": the file's content}, the byte it begins at)."""
        with text(self.path, self.packed, self.name) as (f, mark):
            data = f.read()
        self.end = mark + len(data)
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(error, data.count(b"\n", 0, error.start) + 1, self.name) from None
        if not content.strip():
            raise RowError(Origin(self.name, 0), None, "empty_file", "the file is empty.")
        yield 1, {"text": content}, mark

    def row(self, data: bytes) -> dict[str, Any]:
        """Return the row whose bytes `data` are."""
        return {"text": data.decode()}
