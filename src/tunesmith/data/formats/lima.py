"""lima: "conversations" of plain strings, the user's and the assistant's in turn (LIMA, Zhou et al., 2023, arXiv 2305.11206)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Origin, Prompt, Record

RANK = 10
SHAPE = "conversations of strings"
FIELDS = (*_turns.LISTS[1:], "data", *_turns.SYSTEMS)  # UltraChat's data
SIGNS = FIELDS[:3]


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    for field in SIGNS:
        turns = row.get(field)
        if isinstance(turns, list) and turns and isinstance(turns[0], str) and not _turns.vague(row, field):
            return f"has {field} of strings"
    return None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat whose answers are trained; one string alone is a Prompt (LIMA's test set)."""
    c.no_media(row, origin)
    field = next((f for f in SIGNS if f in row), FIELDS[0])
    said = c.required(row, field, origin)
    if not isinstance(said, list):
        raise c.wrong_type(origin, field, said, "a list of strings")
    if not said:
        raise c.RowError(origin, field, "empty_field", f'field "{field}" is an empty list, expected strings.')
    for i, text in enumerate(said):
        if not isinstance(text, str):
            raise c.wrong_type(origin, f"{field}[{i}]", text, "a string")
    turns = [c.turn("assistant" if i % 2 else "user", text) for i, text in enumerate(said)]
    messages = _turns.with_system(row, turns, origin)
    extra = c.rest(row, (field, *_turns.SYSTEMS))
    if len(said) == 1:
        return Prompt(messages, origin, extra=extra)
    return Chat(messages, [m["role"] == "assistant" and c.answers(m) for m in messages], origin, extra=extra)
