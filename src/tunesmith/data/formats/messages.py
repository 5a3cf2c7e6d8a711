"""messages: OpenAI's chat form, a list of {"role", "content"} with tool calls, "tools", "train" or "weight" per turn."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Origin, Record

RANK = 8
SHAPE = "messages"
LISTS = (*_turns.LISTS, "items")
FIELDS = (*LISTS, "tools", *_turns.SYSTEMS)
SIGNS = LISTS
ALIKE = ("chatlog",)  # of a log most sessions have no ratings


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    if "messages" in row:
        return "has messages"
    for field in LISTS[1:]:
        turns = row.get(field)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
            if _turns.vague(row, field):
                continue
            return f"has {field} of role and content"
    return None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat; the assistant's turns are trained unless they say otherwise."""
    c.no_media(row, origin)
    field = next((f for f in LISTS if f in row), "messages")
    messages, trained = _turns.conversation(c.required(row, field, origin), field, origin)
    whole = _turns.with_system(row, messages, origin)
    if whole is not messages:
        trained = [False, *trained]
    return Chat(whole, trained, origin, c.tools(row, origin), c.rest(row, {*FIELDS, c.tool_field(row)}))
