"""Tool calls and their results: each has the other, names a declared tool, and brings the arguments the tool asks for."""

from typing import Any

from tunesmith.data.checks.found import Found, Item, excerpt
from tunesmith.data.content import turns
from tunesmith.data.records import Message, Preference, Text
from tunesmith.errors import did_you_mean

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int, float), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,),
}  # fmt: skip


def check(item: Item, found: Found) -> None:
    """Note calls without results, results without calls, unknown tools and arguments that do not fit."""
    record = item.record
    if isinstance(record, Text):
        return
    for messages in (
        [[*record.prompt, *a] for a in record.answers] if isinstance(record, Preference) else [turns(record)]
    ):
        if record.tools or any("tool_calls" in m or m["role"] == "tool" for m in messages):
            _pairs(item, messages, found)
            _repeated(item, messages, found)
            _calls(item, messages, record.tools, found)


def _pairs(item: Item, messages: list[Message], found: Found) -> None:
    """Match every result to a call before it, by id where both have one; several calls may share one turn of results."""
    calls: list[Any] = []
    at = 0
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            asked, ids = message.get("tool_call_id"), [c.get("id") for c in calls]
            if not calls or (asked is not None and None not in ids and asked not in ids):
                which = f' to the call "{asked}"' if asked is not None and calls else ""
                _note(
                    item,
                    "orphan_tool",
                    messages,
                    i,
                    f"turn {i + 1} (tool) is a result{which} that nobody asked for.",
                    found,
                )
            continue
        if calls:
            _results(item, messages, at, calls, i, found)
        calls, at = list(message.get("tool_calls") or []), i
    if calls and at < len(messages) - 1:  # a conversation may end with a call: that is what is learnt
        _results(item, messages, at, calls, len(messages), found)


def _results(item: Item, messages: list[Message], at: int, calls: list[Any], stop: int, found: Found) -> None:
    """Note the calls of turn `at` that none of the results up to turn `stop` is for."""
    results = [m.get("tool_call_id") for m in messages[at + 1 : stop]]
    by_id = None not in results and all(c.get("id") is not None for c in calls)
    lost = [c for c in calls if c["id"] not in results] if by_id else calls if not results else []
    if lost:
        names = ", ".join(c["function"]["name"] for c in lost[:3])
        _note(item, "unanswered_call", messages, at, f"turn {at + 1} calls {names}, and no result follows.", found)


def _repeated(item: Item, messages: list[Message], found: Found) -> None:
    for i, message in enumerate(messages):
        ids = [c["id"] for c in message.get("tool_calls") or [] if c.get("id") is not None]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            why = f'turn {i + 1} has {ids.count(twice)} calls with the id "{twice}", so their results cannot be told apart.'
            _note(item, "repeated_call", messages, i, why, found)


def _calls(item: Item, messages: list[Message], tools: list[dict[str, Any]] | None, found: Found) -> None:
    declared = {str(f["name"]): f for t in tools or [] if isinstance(f := t.get("function", t), dict) and "name" in f}
    calls = [(i, c["function"]) for i, m in enumerate(messages) for c in m.get("tool_calls") or []]
    if not calls:
        return
    if not declared:
        if not any(f["name"] in item.prompt for _, f in calls):  # some declare their tools in the system's text
            _note(
                item,
                "no_tools_declared",
                messages,
                calls[0][0],
                f'"{calls[0][1]["name"]}" is called, and the row declares no tools.',
                found,
            )
        return
    for i, function in calls:
        name = function["name"]
        if name not in declared:
            _note(
                item,
                "unknown_tool",
                messages,
                i,
                f'"{name}" is no tool of this row.{did_you_mean(name, declared)}',
                found,
            )
        elif wrong := misfit(function["arguments"], declared[name].get("parameters")):
            _note(item, "bad_arguments", messages, i, f"the call of {name} {wrong}.", found)


def misfit(arguments: Any, schema: Any) -> str | None:
    """Return what is wrong with a call's arguments under the tool's JSON schema, in words; None where nothing is.

    Looked at are required fields, undeclared fields (where any are declared), the fields' types and enums.
    """
    if not isinstance(arguments, dict):
        return "has arguments that are no JSON object"
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return None
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, dict) else {}
    for name in required if isinstance(required, list) else ():
        if isinstance(name, str) and name not in arguments:
            return f'lacks the required argument "{name}"'
    for name, value in arguments.items():
        if name not in properties:
            if properties and schema.get("additionalProperties") is not True:
                hint = did_you_mean(str(name), properties).rstrip(".")
                return f'has an argument "{name}" that the tool does not take.{hint}'
            continue
        if wrong := _wrong_value(value, properties[name]):
            return f'has the argument "{name}" {wrong}'
    return None


def _wrong_value(value: Any, schema: Any) -> str | None:
    if not isinstance(schema, dict) or value is None:
        return None
    kind = schema.get("type")
    types = _TYPES.get(kind) if isinstance(kind, str) else None
    if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
        return f"of another type than {kind}"
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return f"outside its enum ({', '.join(map(str, schema['enum'][:5]))})"
    return None


def _note(item: Item, kind: str, messages: list[Message], i: int, message: str, found: Found) -> None:
    sample = str(messages[i]["content"] or "") or str([c["function"] for c in messages[i].get("tool_calls") or []])
    listed = next(
        (f for f in ("messages", "conversations", "conversation", "prompt") if isinstance(item.row.get(f), list)), None
    )
    shift = messages[0]["role"] == "system" and bool(item.row.get("system"))
    found.add(kind, item.number, f"{listed}[{i - shift}]" if listed else None, message, excerpt(sample))
