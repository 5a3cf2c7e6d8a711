"""sharegpt: "conversations" (or items) of {"from", "value"}: human, gpt, system, function_call, observation; optional "tools".

Capybara's {"input", "output"} stand for two turns.
"""

from typing import Any

from tunesmith.data.formats import _turns
from tunesmith.data.formats.messages import LISTS, convert

__all__ = ["FIELDS", "RANK", "SHAPE", "SIGNS", "convert", "matches"]

RANK = 9
SHAPE = "conversations of from, value"
FIELDS = (*LISTS[1:], "tools", *_turns.SYSTEMS)
SIGNS = LISTS[1:]


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    for field in SIGNS:
        if field in row:
            turns = row[field]
            first = turns[0] if isinstance(turns, list) and turns else None
            other = isinstance(first, str) or (isinstance(first, dict) and "role" in first)
            if field == "items" and (_turns.vague(row, field) or not (isinstance(first, dict) and "value" in first)):
                return None  # a word for anything
            return None if other else f"has {field} of {'input and output' if _is_pair(first) else 'from and value'}"
    return None


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, dict) and "input" in turn and "from" not in turn
