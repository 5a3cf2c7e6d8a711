"""messages: OpenAI's chat form, a list of {"role", "content"} tool calls, "tools", "train" or "weight" per turn."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record

RANK = 1
SHAPE = "messages"
FIELDS = ("messages", "conversations", "conversation", "tools", "system")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    if "messages" in row:
        return "has messages"
    for field in ("conversations", "conversation"):
        turns = row.get(field)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
            return f"has {field} of role and content"
    return None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat; the assistant's turns are trained unless they say otherwise."""
    field = next((f for f in FIELDS[:3] if f in row), "messages")
    messages, trained = c.messages(c.required(row, field, origin), field, origin)
    system = c.optional_text(row, "system", origin)
    if system and messages[0]["role"] != "system":
        messages, trained = [c.turn("system", system), *messages], [False, *trained]
    return Chat(messages, trained, origin, c.tools(row, origin), c.rest(row, FIELDS))
