"""Turns however they are written: role and content, from and value, plain strings, transcripts of "Human:" and "Assistant:"."""

import contextlib
import json
import re
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Message, Origin
from tunesmith.errors import did_you_mean

CALLS = ("function_call", "tool_call")  # the assistant, who says JSON
LISTS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "instruction", "problem", "input")
GIVEN = ("input", "context")
ASKING = ("question", "query")
SYSTEMS = ("system", "system_prompt")
ASKED = (*LISTS, *PROMPTS, "context", *SYSTEMS, "history", "tools")
"""All fields in which a row may hold its prompt."""
TELLING = ("text", "sentence", *LISTS, *PROMPTS, "inputs", "chosen")
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


def vague(row: dict[str, Any], field: str) -> bool:
    """Say whether a field of a name that may mean anything ("items", "data") stands beside what says more about the row."""
    return field in ("items", "data") and any(row.get(name) is not None for name in TELLING)


def spoken(turn: dict[str, Any], where: str, origin: Origin) -> dict[str, Any]:
    """Return a ShareGPT turn {"from", "value"} (or {"role", "value"}) as {"role", "content"}; a function call as a tool call."""
    values = []
    keys = ("role" if "role" in turn else "from", "content" if "content" in turn else "value")
    for key in keys:
        if not isinstance(turn.get(key), str):
            if key in turn:
                raise c.wrong_type(origin, f"{where}.{key}", turn[key], "a string")
            raise c.RowError(origin, f"{where}.{key}", "missing_field", f'field "{where}.{key}" is missing.')
        values.append(turn[key])
    speaker, value = values
    if speaker not in c.ROLES and speaker not in CALLS:
        hint = did_you_mean(speaker, (*c.ROLES, *CALLS))
        raise c.RowError(
            origin,
            f"{where}.from",
            "bad_value",
            f'field "{where}.from" is {c.shown(speaker)}, which is no speaker.{hint}',
        )
    others = {key: turn[key] for key in ("train", "weight", "loss_weight", *c.KEPT) if turn.get(key) is not None}
    if speaker in CALLS:
        return {"role": "assistant", "content": "", "tool_calls": calls(value, f"{where}.{keys[1]}", origin), **others}
    return {"role": c.ROLES[speaker], "content": value, **others}


def calls(value: str, where: str, origin: Origin) -> list[dict[str, Any]]:
    """Return the tool calls that a text of JSON holds: one, or a list of them."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        raise c.wrong_type(origin, where, value, 'JSON of an object with "name" and "arguments"') from None
    return [{"function": call} for call in (found if isinstance(found, list) else [found])]


def conversation(value: Any, field: str, origin: Origin) -> tuple[list[Message], list[bool]]:
    """Return the messages of a list (or of one object) of turns in either spelling, and which are trained."""
    turns = c.objects([value] if isinstance(value, dict) else value, field, origin, "messages")
    if not all(map(_is_plain, turns)):
        turns = [t if "role" in t and _is_plain(t) else spoken(t, f"{field}[{i}]", origin) for i, t in enumerate(turns)]
    return c.messages(turns, field, origin)


def _is_plain(turn: dict[str, Any]) -> bool:
    """Say whether a turn is in OpenAI's spelling."""
    return (
        ("role" in turn or "from" not in turn)
        and ("content" in turn or "value" not in turn)
        and turn.get("role") not in CALLS
    )


def transcript(text: str) -> list[Message] | None:
    """Return the turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." (Anthropic's HH-RLHF); None where the text is no such thing.

    White space around what is said is left out, and so is an assistant's turn that has not begun.
    """
    if not text[:12].lstrip().startswith("Human:"):
        return None
    pieces = _SPOKEN.split(text)
    if len(pieces) < 5 or pieces[0].strip() or pieces[1] != "Human":  # one speaker's mark alone may be anything
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [c.turn(roles[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return turns[:-1] if turns[-1] == c.turn("assistant", "") else turns


def _written(value: Any) -> Any:
    """Return the list of turns that a CSV cell holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.startswith("[{"):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if all(isinstance(t, dict) and ("role" in t or "from" in t) for t in found):
                return found
    return value


def turns(value: Any, field: str, role: str, origin: Origin) -> list[Message]:
    """Return the turns in a field: a string (one turn of `role`, or a transcript), a turn, or a list of turns."""
    value = _written(value)
    if isinstance(value, str):
        return transcript(value) or [c.turn(role, value)]
    if not isinstance(value, (list, dict)):
        raise c.wrong_type(origin, field, value, "a string or a list of messages")
    return conversation(value, field, origin)[0]


def answer(value: Any, field: str, origin: Origin) -> list[Message]:
    """Return an answer's turns, which begin with the assistant's (or a tool's): a string, a turn, or a list of turns."""
    said = turns(value, field, "assistant", origin)
    if said[0]["role"] not in ("assistant", "tool"):
        found = f'field "{field}" begins with a turn of the {said[0]["role"]}; expected the answer alone, the prompt in its own field.'
        raise c.RowError(origin, field, "bad_value", found)
    return said


def prompt_field(row: dict[str, Any]) -> str | None:
    """Return the field that holds the row's prompt, None where there is none."""
    return c.first_of(row, (*PROMPTS[:1], *LISTS, *PROMPTS[1:]))


def asked_fields(row: dict[str, Any]) -> set[str]:
    """Return the fields that `prompt` reads of this row."""
    field = prompt_field(row)
    return {*SYSTEMS, "history", c.tool_field(row), *([field] if field else []), *given(row, field)}


def given(row: dict[str, Any], field: str | None) -> tuple[str, ...]:
    """Return the fields that stand beside an instruction, or a question about a text, and belong to it."""
    if field == "instruction":
        return GIVEN
    return ("context",) if field in ASKING and isinstance(row.get("context"), str) else ()


def about(row: dict[str, Any], field: str, question: str) -> str:
    """Return the question after the row's "context", if it has one that is text, and a blank line."""
    context = row.get("context") if given(row, field) == ("context",) else ""
    return "\n\n".join(text for text in (context, question) if text)


def prompt(row: dict[str, Any], origin: Origin) -> list[Message]:
    """Return the row's prompt: of the first of prompt, messages, conversations, question, query, instruction, problem, input.

    An instruction has its "input" or "context" after a blank line, as Alpaca's, a question its "context" before it; "history"
    and "system" come before.
    """
    c.no_media(row, origin)
    field = prompt_field(row)
    if field is None:
        c.required(row, "prompt", origin)  # says what is missing, or null
        raise c.wrong_type(origin, "prompt", None, "a string or a list of messages")
    asked = turns(row[field], field, "user", origin)
    if field in ASKING:
        asked[-1] = {**asked[-1], "content": about(row, field, asked[-1]["content"])}
    more = c.first_of(row, GIVEN) if field == "instruction" else None
    if more and (text := c.text(row, more, origin)):
        asked[-1] = {**asked[-1], "content": "\n\n".join(t for t in (asked[-1]["content"], text) if t)}
    return with_system(row, [*history(row, origin), *asked], origin)


def with_system(row: dict[str, Any], messages: list[Message], origin: Origin) -> list[Message]:
    """Return the messages with the row's "system" (or "system_prompt") before them, if it has one and they do not."""
    system = c.optional_text(row, "system" if row.get("system") else "system_prompt", origin)
    return [c.turn("system", system), *messages] if system and messages[0]["role"] != "system" else messages


def history(row: dict[str, Any], origin: Origin) -> list[Message]:
    """Return the turns of "history", a list of [question, answer] pairs."""
    pairs = c.listed(row.get("history"))
    if pairs is None or pairs == "" or pairs == []:
        return []
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs
    ):
        expected = "a list of [question, answer] pairs (give the field another name where it means something else)"
        raise c.wrong_type(origin, "history", pairs, expected)
    return [c.turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def parted(messages: list[Message], field: str, origin: Origin) -> tuple[list[Message], list[Message]]:
    """Return (prompt, answer): the answer is all that follows the last turn of the user."""
    asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1) + 1
    if not asked:
        raise c.RowError(origin, field, "no_prompt", f'field "{field}" has no turn of the user, so there is no prompt.')
    if asked == len(messages):
        found = f'field "{field}" ends with the user\'s turn; expected an answer after it.'
        raise c.RowError(origin, field, "no_answer", found)
    return messages[:asked], messages[asked:]
