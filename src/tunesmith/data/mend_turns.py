"""Mending the order of turns: empty ones, several of one role in a row, a system turn in the middle, results of no call."""

from tunesmith.data.formats._common import answers
from tunesmith.data.records import Message

Turn = tuple[Message, bool]
"""A message and whether it is trained."""


def without_empty(turns: list[Turn]) -> list[Turn]:
    """Return the turns that say something; a tool's empty result is a result."""
    return [
        (m, t) for m, t in turns if m["role"] == "tool" or answers(m) or m.get("reasoning_content") or m.get("thinking")
    ]


def system_first(turns: list[Turn]) -> list[Turn]:
    """Return the turns with the system's before all others, in their order."""
    return [x for x in turns if x[0]["role"] == "system"] + [x for x in turns if x[0]["role"] != "system"]


def merged(turns: list[Turn], join: str) -> list[Turn]:
    """Return the turns with neighbours of one role made one, their texts joined by `join`.

    Turns with more than a text (calls, reasoning, a name) stay apart, tools' results do, and a trained turn from one that is not.
    """
    out: list[Turn] = []
    for message, trained in turns:
        before = out[-1] if out else None
        plain = before is not None and set(before[0]) == set(message) == {"role", "content"}
        if (
            before
            and plain
            and message["role"] != "tool"
            and (before[0]["role"], before[1]) == (message["role"], trained)
        ):
            text = f"{before[0]['content']}{join}{message['content']}"
            out[-1] = ({"role": message["role"], "content": text}, trained)
        else:
            out.append((message, trained))
    return out


def orphan(messages: list[Message]) -> str | None:
    """Return what is wrong with a tool's result that answers no call ("turn 3 is a tool's result without a call"), else None."""
    open_ids: set[str] | None = None
    for number, message in enumerate(messages, 1):
        if message["role"] != "tool":
            calls = message.get("tool_calls") if message["role"] == "assistant" else None
            open_ids = {str(c["id"]) for c in calls if c.get("id") is not None} if calls else None
        elif open_ids is None:
            return f"turn {number} is a tool's result without a call before it"
        elif open_ids and message.get("tool_call_id") is not None and message["tool_call_id"] not in open_ids:
            return f"turn {number} is the result of a tool call that is not there (tool_call_id)"
    return None
