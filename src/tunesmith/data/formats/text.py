"""text: plain text in "text", every token of it scored (a .txt or .md file is one such row)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Origin, Record, Text

RANK = 20  # asked last: rows of other formats often carry their rendering as "text" too
SHAPE = "text"
FIELDS = ("text",)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    return "has text" if "text" in row else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as Text."""
    return Text(c.text(row, "text", origin), origin, c.rest(row, FIELDS))
