"""alpaca: "instruction", optional "input", and "output"; optional "system" and "history" (Dolly's names too)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record

RANK = 3
SHAPE = "instruction, output"
FIELDS = ("instruction", "input", "context", "output", "response", "system", "history")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    if "instruction" not in row or not ("output" in row or "response" in row):
        return None
    return f"has instruction and {_answer_field(row)}"


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: the user's turn is the instruction, then a blank line and the input if there is one."""
    instruction = c.text(row, "instruction", origin)
    given = c.optional_text(row, "input" if row.get("input") is not None else "context", origin)
    answer = c.text(row, _answer_field(row), origin)
    system = c.optional_text(row, "system", origin)
    messages = [c.turn("system", system)] if system else []
    for asked, answered in _history(row, origin):
        messages += [c.turn("user", asked), c.turn("assistant", answered)]
    prompt = f"{instruction}\n\n{given}" if given and instruction else instruction or given
    messages += [c.turn("user", prompt), c.turn("assistant", answer)]
    trained = [m["role"] == "assistant" and c.answers(m) for m in messages]
    return Chat(messages, trained, origin, extra=c.rest(row, FIELDS))


def _answer_field(row: dict[str, Any]) -> str:
    return "response" if "response" in row and "output" not in row else "output"


def _history(row: dict[str, Any], origin: Origin) -> list[tuple[str, str]]:
    history = row.get("history")
    if history is None or history == "":
        return []
    pairs = history if isinstance(history, list) else None
    if pairs is None or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
    ):
        raise c.wrong_type(origin, "history", history, "a list of [question, answer] pairs")
    return [(asked, answered) for asked, answered in pairs]
