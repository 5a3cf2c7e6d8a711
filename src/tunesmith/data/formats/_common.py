"""What the formats share: reading a field, messages and tools, each with an error that names the place."""

import contextlib
import json
from typing import Any

from tunesmith.data.records import Message, Origin
from tunesmith.errors import InputError, did_you_mean

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")


class RowError(InputError):
    """A row is wrong: `origin` and `field` say where, `kind` what (missing_field, wrong_type, ...), in a word."""

    def __init__(self, origin: Origin, field: str | None, kind: str, message: str) -> None:
        super().__init__(f"{origin if origin.row else origin.file}: {message}")
        self.origin, self.field, self.kind, self.message = origin, field, kind, message


def json_type(value: Any) -> str:
    """Name a value's type as people who write JSON do."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def wrong_type(origin: Origin, field: str, value: Any, expected: str) -> RowError:
    """Return the error of a field that is there but null or of another type."""
    if value is None:
        return RowError(origin, field, "null_field", f'field "{field}" is null, expected {expected}.')
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    return RowError(
        origin, field, "wrong_type", f'field "{field}" is {json_type(value)} ({shown}), expected {expected}.'
    )


def required(row: dict[str, Any], field: str, origin: Origin) -> Any:
    """Return row[field]; RowError with the row's own nearest field name where it is missing."""
    if field not in row:
        has = did_you_mean(field, row).replace(" Known:", " The row has:")
        raise RowError(origin, field, "missing_field", f'field "{field}" is missing.{has}')
    return row[field]


def text(row: dict[str, Any], field: str, origin: Origin) -> str:
    """Return the string row[field]."""
    value = required(row, field, origin)
    if not isinstance(value, str):
        raise wrong_type(origin, field, value, "a string")
    return value


def optional_text(row: dict[str, Any], field: str, origin: Origin) -> str:
    """Return the string row[field], "" where it is missing or null."""
    return "" if row.get(field) is None else text(row, field, origin)


def objects(value: Any, field: str, origin: Origin, of: str) -> list[dict[str, Any]]:
    """Return a non-empty list of objects (also one written as a JSON string, as CSV must)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise wrong_type(origin, field, value, f"a list of {of}") from None
    if not isinstance(value, list):
        raise wrong_type(origin, field, value, f"a list of {of}")
    if not value:
        raise RowError(origin, field, "empty_field", f'field "{field}" is an empty list, expected {of}.')
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong_type(origin, f"{field}[{i}]", item, "an object")
    return value


def tools(row: dict[str, Any], origin: Origin) -> list[dict[str, Any]] | None:
    """Return the row's tools in OpenAI's form ({"type": "function", "function": {...}}), None where it has none."""
    value = row.get("tools")
    if value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "[]", "null")):
        return None
    found = [_without_nulls(tool) for tool in objects(value, "tools", origin, "tools")]
    return [tool if "function" in tool or "type" in tool else {"type": "function", "function": tool} for tool in found]


def messages(value: Any, field: str, origin: Origin) -> tuple[list[Message], list[bool]]:
    """Return a list of OpenAI messages in one plain form, and which are trained.

    Content becomes a string (text parts joined), tool calls carry their arguments as an object (templates write them as
    JSON). Trained are the assistant's turns, unless they say `train: false` or `weight: 0`, or are empty.
    """
    out: list[Message] = []
    trained: list[bool] = []
    for i, raw in enumerate(objects(value, field, origin, "messages")):
        where = f"{field}[{i}]"
        message = _message(raw, where, origin)
        out.append(message)
        trained.append(_trained(raw, message, where, origin))
    return out, trained


def _message(raw: dict[str, Any], where: str, origin: Origin) -> Message:
    role = required(raw, "role", origin) if "role" in raw else None
    if not isinstance(role, str):
        if "role" in raw:
            raise wrong_type(origin, f"{where}.role", role, "a string")
        raise RowError(origin, f"{where}.role", "missing_field", f'field "{where}.role" is missing.')
    if role not in ROLES:
        hint = did_you_mean(role, ROLES)
        raise RowError(
            origin, f"{where}.role", "bad_value", f'field "{where}.role" is "{role}", which is no role.{hint}'
        )
    message: Message = {"role": ROLES[role], "content": ""}
    calls = raw.get("tool_calls") or ([{"function": raw["function_call"]}] if raw.get("function_call") else [])
    content = raw.get("content")
    if isinstance(content, list):
        calls = list(calls) + _parts(content, message, f"{where}.content", origin)
    elif isinstance(content, str):
        message["content"] = content
    elif content is not None:
        raise wrong_type(origin, f"{where}.content", content, "a string or a list of parts")
    elif not calls:
        if "content" in raw:
            raise wrong_type(origin, f"{where}.content", None, "a string")
        raise RowError(origin, f"{where}.content", "missing_field", f'field "{where}.content" is missing.')
    if calls:
        listed = objects(calls, f"{where}.tool_calls", origin, "tool calls")
        message["tool_calls"] = [tool_call(call, f"{where}.tool_calls[{i}]", origin) for i, call in enumerate(listed)]
    message.update({key: raw[key] for key in _KEPT if isinstance(raw.get(key), str)})
    return message


def _parts(parts: list[Any], message: Message, where: str, origin: Origin) -> list[dict[str, Any]]:
    """Write text and reasoning parts into `message`; return the tool calls among them."""
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for i, part in enumerate(objects(parts, where, origin, "parts")):
        kind = part.get("type", "text")
        value = part.get("text") if part.get("text") is not None else part.get("value")
        if kind not in ("text", "reasoning", "thinking", "tool_call"):
            raise RowError(
                origin,
                f"{where}[{i}]",
                "unsupported_part",
                f'"{where}[{i}]" is of type "{kind}"; only text parts are read.',
            )
        if kind == "tool_call":
            calls.append({"function": value})
        elif not isinstance(value, str):
            raise wrong_type(origin, f"{where}[{i}].text", value, "a string")
        elif kind == "text":
            message["content"] += value
        else:
            reasoning.append(value)
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    return calls


def tool_call(call: dict[str, Any], where: str, origin: Origin) -> dict[str, Any]:
    """Return one tool call as {"type", "function": {"name", "arguments": object}} (with its id, if it has one)."""
    function = call.get("function", call)
    if isinstance(function, str):
        try:
            function = json.loads(function)
        except ValueError:
            raise wrong_type(origin, where, function, 'an object with "name" and "arguments"') from None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong_type(origin, where, function, 'an object with "name" and "arguments"')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # what a model wrote need not be JSON: it is kept as written
            arguments = json.loads(arguments) if arguments.strip() else {}
    out: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return out if call.get("id") is None else {"id": call["id"], **out}


def _trained(raw: dict[str, Any], message: Message, where: str, origin: Origin) -> bool:
    flag: Any = None
    for key in ("train", "weight", "loss_weight"):
        if raw.get(key) is None:
            continue
        flag = raw[key]
        if flag not in (0, 1):  # True == 1, 0.0 == 0
            expected = "true or false" if key == "train" else "0 or 1"
            raise wrong_type(origin, f"{where}.{key}", flag, expected)
        if flag and message["role"] != "assistant":
            reason = (
                f'"{where}.{key}" asks to train on a turn of the {message["role"]}; only the assistant\'s are trained.'
            )
            raise RowError(origin, f"{where}.{key}", "bad_value", reason)
    return message["role"] == "assistant" and bool(flag is None or flag) and answers(message)


def answers(message: Message) -> bool:
    """Say whether an assistant's turn has anything to learn: text or a tool call."""
    return bool(str(message["content"]).strip() or message.get("tool_calls"))


def turn(role: str, content: str) -> Message:
    """Return a message of one string."""
    return {"role": role, "content": content}


def rest(row: dict[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """Return the row's other fields, which evaluation may read."""
    return {key: value for key, value in row.items() if key not in used}


def _without_nulls(value: Any) -> Any:
    """Drop null fields, which Parquet adds to every object of a column."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
