"""What the formats share: reading a field, messages and tools, each with an error that names the place."""

import contextlib
import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from tunesmith.data.records import Message, Origin
from tunesmith.errors import InputError, did_you_mean

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
}  # fmt: skip
KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")


class RowError(InputError):
    """A row is wrong: `origin` and `field` say where, `kind` what (missing_field, wrong_type, ...), in a word."""

    def __init__(self, origin: Origin, field: str | None, kind: str, message: str) -> None:
        message = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
        super().__init__(f"{origin if origin.row else origin.file}: {message}")
        self.origin, self.field, self.kind, self.message = origin, field, kind, message

    def inside(self, place: str) -> "RowError":
        """Return the same error of a field inside another: "instances[2]"."""
        field = f"{place}.{self.field}" if self.field else place
        message = self.message.replace(f'"{self.field}"', f'"{field}"', 1) if self.field else self.message
        return RowError(self.origin, field, self.kind, message)


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
    found = f'field "{field}" is {json_type(value)} ({shown(value)}), expected {expected}.'
    return RowError(origin, field, "wrong_type", found)


def shown(value: Any) -> str:
    """Return a value as JSON, at most 40 characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:40] + "…"


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


def listed(value: Any) -> Any:
    """Return the list that a CSV cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def tools(row: dict[str, Any], origin: Origin) -> list[dict[str, Any]] | None:
    """Return the row's tools in OpenAI's form ({"type": "function", "function": {...}}), None where it has none."""
    field = tool_field(row)
    value = listed(row.get(field))
    if value is None or value == [] or (isinstance(value, str) and value.strip() in ("", "[]", "null")):
        return None
    found = [_without_nulls(tool) for tool in objects(value, field, origin, "tools")]
    return [_tool(tool) for tool in found]


def tool_field(row: dict[str, Any]) -> str:
    """Return the field of the row's tools: "tools", or OpenAI's older "functions" where they are such."""
    older = listed(row.get("functions"))
    named = isinstance(older, list) and older and all(isinstance(one, dict) and "name" in one for one in older)
    return "functions" if named and not row.get("tools") else "tools"


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if "input_schema" in tool and "name" in tool:  # Anthropic's
        tool = {key: tool[key] for key in ("name", "description") if key in tool} | {"parameters": tool["input_schema"]}
    return tool if "function" in tool or "type" in tool else {"type": "function", "function": tool}


def messages(value: Any, field: str, origin: Origin) -> tuple[list[Message], list[bool]]:
    """Return a list of OpenAI messages in one plain form, and which are trained.

    Content becomes a string (text parts joined), tool calls carry their arguments as an object (templates write them as
    JSON). Trained are the assistant's turns, unless they say `train: false` or `weight: 0`, or are empty.
    """
    out: list[Message] = []
    trained: list[bool] = []
    for i, raw in enumerate(objects(value, field, origin, "messages")):
        role, content = raw.get("role"), raw.get("content")
        if len(raw) == 2 and isinstance(content, str) and isinstance(role, str) and role in ROLES:  # most turns
            out.append(turn(ROLES[role], content))
            trained.append(ROLES[role] == "assistant" and bool(content.strip()))
            continue
        where = f"{field}[{i}]"
        for one in apart(raw, where, origin):
            message = _message(one, where, origin)
            out.append(message)
            trained.append(_trained(one, message, where, origin))
    return out, trained


def apart(raw: dict[str, Any], where: str, origin: Origin) -> list[dict[str, Any]]:
    """Return the turns that are written as one: Capybara's {"input", "output"}, tool results among Anthropic's parts; else itself."""
    if "input" in raw and "output" in raw and "role" not in raw:
        for key in ("input", "output"):
            if not isinstance(raw[key], str):
                raise wrong_type(origin, f"{where}.{key}", raw[key], "a string")
        others = {key: value for key, value in raw.items() if key not in ("input", "output")}
        return [turn("user", raw["input"]), {"role": "assistant", "content": raw["output"], **others}]
    parts = raw.get("content")
    if not isinstance(parts, list) or not any(_is_result(part) for part in parts):
        return [raw]
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content") or ""}
        for part in parts
        if _is_result(part)
    ]
    said = [part for part in parts if not _is_result(part)]
    return [*results, {**raw, "content": said}] if said else results


def _is_result(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "tool_result"


def _message(raw: dict[str, Any], where: str, origin: Origin) -> Message:
    role = required(raw, "role", origin) if "role" in raw else None
    if not isinstance(role, str):
        if "role" in raw:
            raise wrong_type(origin, f"{where}.role", role, "a string")
        raise RowError(origin, f"{where}.role", "missing_field", f'field "{where}.role" is missing.')
    if role not in ROLES:
        hint = did_you_mean(role, ROLES)
        raise RowError(
            origin, f"{where}.role", "bad_value", f'field "{where}.role" is {shown(role)}, which is no role.{hint}'
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
    message.update({key: raw[key] for key in KEPT if isinstance(raw.get(key), str)})
    if isinstance(raw.get("reasoning"), str):  # as OpenRouter and vLLM spell it
        message.setdefault("reasoning_content", raw["reasoning"])
    return message


def _parts(parts: list[Any], message: Message, where: str, origin: Origin) -> list[dict[str, Any]]:
    """Write text and reasoning parts into `message`; return the tool calls among them."""
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for i, part in enumerate(objects(parts, where, origin, "parts")):
        kind = part.get("type", "text")
        value = part.get(first_of(part, ("text", "value", "thinking", "reasoning")) or "text")
        if kind not in ("text", "input_text", "output_text", "reasoning", "thinking", "tool_call", "tool_use"):
            raise RowError(
                origin,
                f"{where}[{i}]",
                "unsupported_part",
                f'"{where}[{i}]" is of type {shown(kind)}; only text parts are read.',
            )
        if kind == "tool_call":
            calls.append({"function": value})
        elif kind == "tool_use":
            calls.append({"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}})
        elif not isinstance(value, str):
            raise wrong_type(origin, f"{where}[{i}].text", value, "a string")
        elif kind.endswith("text"):
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
        arguments = _arguments(arguments)
    out: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return out if call.get("id") is None else {"id": call["id"], **out}


def _arguments(written: str) -> Any:
    """Return the object written as JSON; what a model wrote need not be one: it is kept as written then."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(written) if written.strip() else {}
        if isinstance(found, dict):
            return found
    return written


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


def rest(row: dict[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Return the row's other fields, which evaluation may read; an object in "extra_fields" is laid among them (see kinds.to_row)."""
    out = {key: value for key, value in row.items() if key not in used}
    if "extra_fields" in out and isinstance(out["extra_fields"], dict):
        out.update(out.pop("extra_fields"))
    return out


def first_of(row: dict[str, Any], options: Iterable[str]) -> str | None:
    """Return the first of the field names that the row has with a value, None where it has none of them."""
    return next((name for name in options if row.get(name) is not None), None)


def no_media(row: dict[str, Any], origin: Origin) -> None:
    """Refuse a row whose pictures, sounds or films would be left out of what is learnt."""
    for field in ("images", "image", "videos", "audios"):
        if row.get(field):
            found = f'field "{field}" names media, and only text is read; take such rows out, or the field, if the text is enough.'
            raise RowError(origin, field, "unsupported_part", found)


def number(value: Any, field: str, origin: Origin) -> float:
    """Return a finite number (also one written as a string, as CSV must)."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        found = float("nan") if isinstance(value, bool) else float(value)
        if math.isfinite(found):
            return found
    raise wrong_type(origin, field, value, "a number")


def _without_nulls(value: Any) -> Any:
    """Drop null fields, which Parquet adds to every object of a column."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
