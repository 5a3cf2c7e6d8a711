"""prompt_completion: "prompt" and "completion" (or response, answer; question, input), strings or lists of messages."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Message, Origin, Record

RANK = 4
SHAPE = "prompt, completion"
PROMPTS = ("prompt", "question", "query", "input")
COMPLETIONS = ("completion", "response", "answer", "output")
FIELDS = (*PROMPTS, *COMPLETIONS, "system", "tools")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    prompt, completion = _field(row, PROMPTS), _field(row, COMPLETIONS)
    return f"has {prompt} and {completion}" if prompt in row and completion in row else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat (the same template as generation then), of which only the completion is trained."""
    asked, answered = _field(row, PROMPTS), _field(row, COMPLETIONS)
    prompt, _ = _turns(row, asked, "user", origin)
    completion, trained = _turns(row, answered, "assistant", origin)
    system = c.optional_text(row, "system", origin)
    if system and prompt[0]["role"] != "system":
        prompt = [c.turn("system", system), *prompt]
    flags = [False] * len(prompt) + trained
    used = (asked, answered, "system", "tools")
    return Chat(prompt + completion, flags, origin, c.tools(row, origin), c.rest(row, used))


def _field(row: dict[str, Any], options: tuple[str, ...]) -> str:
    return next((name for name in options if name in row), options[0])


def _turns(row: dict[str, Any], field: str, role: str, origin: Origin) -> tuple[list[Message], list[bool]]:
    value = c.required(row, field, origin)
    if isinstance(value, list):
        return c.messages(value, field, origin)
    if not isinstance(value, str):
        raise c.wrong_type(origin, field, value, "a string or a list of messages")
    message = c.turn(role, value)
    return [message], [role == "assistant" and c.answers(message)]
