"""function_calls: a "query", the "tools" at hand, and "answers", the calls that are right (xLAM, Liu et al., 2024, arXiv 2406.18518)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Message, Origin, Record

RANK = 18
SHAPE = "query, tools, answers"
FIELDS = (*_turns.PROMPTS, "tools", "answers", *_turns.SYSTEMS)
SIGNS = ("answers",)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    calls = c.listed(row.get("answers"))
    first = calls[0] if isinstance(calls, list) and calls else None
    if not isinstance(first, dict) or not {"name", "arguments"} <= first.keys() or not row.get("tools"):
        return None
    return "has tools and answers that call them" if _turns.prompt_field(row) in _turns.PROMPTS else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat whose one answer, the calls, is trained."""
    prompt = _turns.prompt(row, origin)
    listed = c.objects(c.required(row, "answers", origin), "answers", origin, "tool calls")
    calls = [c.tool_call(call, f"answers[{i}]", origin) for i, call in enumerate(listed)]
    answer: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    tools = [_with_schema(tool) for tool in c.tools(row, origin) or []] or None
    extra = c.rest(row, {"answers", *_turns.asked_fields(row)})
    return Chat([*prompt, answer], [False] * len(prompt) + [True], origin, tools, extra)


def _with_schema(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the tool with its parameters as a JSON schema, which xLAM writes without its outer part."""
    function = tool.get("function")
    parameters = function.get("parameters") if isinstance(function, dict) else None
    if not isinstance(parameters, dict) or not parameters or not all(isinstance(p, dict) for p in parameters.values()):
        return tool
    required = [name for name, p in parameters.items() if "default" not in p and "optional" not in str(p.get("type"))]
    schema = {"type": "object", "properties": parameters, "required": required}
    return {**tool, "function": {**tool["function"], "parameters": schema}}
