"""glaive: "system" with the functions and "chat", a transcript of USER:, ASSISTANT: and FUNCTION RESPONSE: (function calling v2)."""

import json
import re
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Chat, Message, Origin, Record

RANK = 19
SHAPE = "system, chat"
FIELDS = ("system", "chat")
SIGNS = ("chat",)
ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_SPEAKER = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]?")
_CALL = re.compile(r'<functioncall>\s*\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*(.*)\}\s*$', re.DOTALL)
_END = "<|endoftext|>"


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    chat = row.get("chat")
    return "has a chat of USER: and ASSISTANT:" if isinstance(chat, str) and _SPEAKER.match(chat) else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: its calls as tool calls, the functions of its system text as tools.

    A system text whose functions are no JSON stays as it is.
    """
    pieces = _SPEAKER.split(c.text(row, "chat", origin))
    if len(pieces) < 3 or pieces[0].strip():
        raise c.wrong_type(origin, "chat", row["chat"], 'a transcript that begins with "USER:"')
    said = zip(pieces[1::2], pieces[2::2], strict=True)
    messages = [_message(ROLES[who], text.replace(_END, "").strip(), origin) for who, text in said]
    system, tools = _system(c.optional_text(row, "system", origin))
    messages = _turns.with_system({"system": system}, messages, origin)
    trained = [m["role"] == "assistant" and c.answers(m) for m in messages]
    return Chat(messages, trained, origin, tools, c.rest(row, FIELDS))


def _message(role: str, text: str, origin: Origin) -> Message:
    call = _CALL.search(text) if role == "assistant" else None
    if call is None:
        return c.turn(role, text)
    written = call[2].strip()
    if written[:1] == written[-1:] == "'":  # JSON in single quotes, its own ones escaped as in Python
        written = written[1:-1].replace("\\'", "'")
    made = c.tool_call({"name": call[1], "arguments": written}, "chat", origin)
    return {"role": "assistant", "content": text[: call.start()].strip(), "tool_calls": [made]}


def _system(text: str) -> tuple[str, list[dict[str, Any]] | None]:
    """Return (what it says, the functions after it): "SYSTEM: You are ... -\\n{...}\\n{...}"."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    start = text.find("{")
    found, at = [], start
    decoder = json.JSONDecoder()
    while 0 <= at < len(text):
        try:
            function, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return text, None
        found.append(function)
        at += len(text[at:]) - len(text[at:].lstrip())
    if not found or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
        return text, None
    return text[:start].rstrip(" -\n"), [{"type": "function", "function": one} for one in found]
