"""dolly: "instruction", optional "context", and "response": Alpaca under the names of Databricks' Dolly."""

from typing import Any

from tunesmith.data.formats import _turns, alpaca
from tunesmith.data.records import Origin, Record

RANK = 13
SHAPE = "instruction, response"
FIELDS = ("instruction", "context", "input", "response", *_turns.SYSTEMS, "history")
SIGNS = ("response",)
ALIKE = ("alpaca",)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    if "instruction" not in row or "response" not in row or "output" in row:
        return None
    return f"has instruction{', context' if 'context' in row else ''} and response"


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: the user's turn is the instruction, then a blank line and the context if there is one."""
    return alpaca.chat(row, origin, "response", FIELDS)
