"""sharegpt: "conversations" of {"from", "value"}: human, gpt, system, function_call, observation; optional "tools"."""

import json
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record
from tunesmith.errors import did_you_mean

RANK = 2
SHAPE = "conversations of from, value"
FIELDS = ("conversations", "conversation", "tools", "system")
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "function_call": "assistant",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    for field in FIELDS[:2]:
        if field in row:
            turns = row[field]
            spoken = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]
            return None if spoken else f"has {field} of from and value"
    return None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat; what gpt says and the functions it calls are trained."""
    field = "conversation" if "conversation" in row and "conversations" not in row else "conversations"
    turns = c.objects(c.required(row, field, origin), field, origin, "turns")
    spoken = [_message(turn, f"{field}[{i}]", origin) for i, turn in enumerate(turns)]
    messages, trained = c.messages(spoken, field, origin)
    system = c.optional_text(row, "system", origin)
    if system and messages[0]["role"] != "system":
        messages, trained = [c.turn("system", system), *messages], [False, *trained]
    return Chat(messages, trained, origin, c.tools(row, origin), c.rest(row, FIELDS))


def _message(turn: dict[str, Any], where: str, origin: Origin) -> dict[str, Any]:
    values = {}
    for key in ("from", "value"):
        if not isinstance(turn.get(key), str):
            if key in turn:
                raise c.wrong_type(origin, f"{where}.{key}", turn[key], "a string")
            raise c.RowError(origin, f"{where}.{key}", "missing_field", f'field "{where}.{key}" is missing.')
        values[key] = turn[key]
    speaker, value = values["from"], values["value"]
    if speaker not in SPEAKERS:
        hint = did_you_mean(speaker, SPEAKERS)
        raise c.RowError(
            origin, f"{where}.from", "bad_value", f'field "{where}.from" is "{speaker}", which is no speaker.{hint}'
        )
    message: dict[str, Any] = {"role": SPEAKERS[speaker], "content": value}
    if speaker == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(value, f"{where}.value", origin)}
    flags = {key: turn[key] for key in ("train", "weight") if turn.get(key) is not None}
    return message | flags


def _calls(value: str, where: str, origin: Origin) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value)
    except ValueError:
        raise c.wrong_type(origin, where, value, 'JSON of an object with "name" and "arguments"') from None
    calls = calls if isinstance(calls, list) else [calls]
    return [{"function": call} for call in calls]
