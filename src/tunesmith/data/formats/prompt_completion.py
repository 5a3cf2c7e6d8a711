"""prompt_completion: "prompt" and "completion" (or response, answer; question, input), strings or lists of messages."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Message, Origin, Record

RANK = 15
SHAPE = "prompt, completion"
PROMPTS = ("prompt", "question", "query", "input")
COMPLETIONS = ("completion", "response", "answer", "output", "generation")
FIELDS = (*PROMPTS, *COMPLETIONS, *_turns.SYSTEMS, "history", "tools")
SIGNS = COMPLETIONS


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    prompt, completion = _field(row, PROMPTS), _field(row, COMPLETIONS)
    return f"has {prompt} and {completion}" if prompt in row and completion in row else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat (the same template as generation then), of which only the completion is trained."""
    c.no_media(row, origin)
    asked, answered = _field(row, PROMPTS), _field(row, COMPLETIONS)
    prompt, _ = _read(row, asked, "user", origin)
    prompt[-1] = {**prompt[-1], "content": _turns.about(row, asked, prompt[-1]["content"])}
    completion, trained = _read(row, answered, "assistant", origin)
    prompt = _turns.with_system(row, [*_turns.history(row, origin), *prompt], origin)
    flags = [False] * len(prompt) + trained
    used = {asked, answered, *_turns.SYSTEMS, "history", c.tool_field(row), *_turns.given(row, asked)}
    return Chat(prompt + completion, flags, origin, c.tools(row, origin), c.rest(row, used))


def _field(row: dict[str, Any], options: tuple[str, ...]) -> str:
    return next((name for name in options if name in row), options[0])


def _read(row: dict[str, Any], field: str, role: str, origin: Origin) -> tuple[list[Message], list[bool]]:
    value = c.required(row, field, origin)
    if isinstance(value, (list, dict)):
        return _turns.conversation(value, field, origin)
    if not isinstance(value, str):
        raise c.wrong_type(origin, field, value, "a string or a list of messages")
    message = c.turn(role, value)
    return [message], [role == "assistant" and c.answers(message)]
