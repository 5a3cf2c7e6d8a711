"""alpaca: "instruction", optional "input", and "output"; optional "system" and "history"."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Origin, Record

RANK = 12
SHAPE = "instruction, output"
FIELDS = ("instruction", "input", "context", "output", *_turns.SYSTEMS, "history")
SIGNS = ("instruction",)
ALIKE = ("dolly",)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    return "has instruction and output" if "instruction" in row and "output" in row else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: the user's turn is the instruction, then a blank line and the input if there is one."""
    return chat(row, origin, "output", FIELDS)


def chat(row: dict[str, Any], origin: Origin, answer: str, used: tuple[str, ...]) -> Chat:
    """Return the Chat of an instruction, the input or context given with it, and the text in the field `answer`."""
    c.no_media(row, origin)
    instruction = c.text(row, "instruction", origin)
    more = c.optional_text(row, "context" if row.get("input") is None else "input", origin)
    answered = c.turn("assistant", c.text(row, answer, origin))
    asked = c.turn("user", f"{instruction}\n\n{more}" if more and instruction else instruction or more)
    messages, trained = [asked, answered], [False, c.answers(answered)]
    if row.get("history") or c.first_of(row, _turns.SYSTEMS):
        before = _turns.history(row, origin)
        messages = _turns.with_system(row, [*before, *messages], origin)
        trained = [m["role"] == "assistant" and c.answers(m) for m in messages]
    return Chat(messages, trained, origin, extra=c.rest(row, used))
