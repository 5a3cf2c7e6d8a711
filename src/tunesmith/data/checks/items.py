"""From a row's records to what the checks look at."""

import json
from typing import Any

from tunesmith.data.checks.found import Item
from tunesmith.data.content import turns
from tunesmith.data.records import Chat, Message, Record, Text, Verdict


def item(number: int, row: dict[str, Any], record: Record) -> Item:
    """Return a record with its texts in the form that checks share; cheap, for it is made of every row."""
    match record:
        case Text():
            return Item(number, row, record, record.text, "", [record.text])
        case Chat():
            messages = record.messages
            if len(messages) == 2 and messages[0]["role"] == "user" and messages[1]["role"] == "assistant":  # most are
                asked, answered = _said(messages[0]), _said(messages[1])
                return Item(number, row, record, f"{asked}\n{answered}", asked, [answered])
            first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
            said = [_said(m) for m in messages]
            answers = [s for s, m in zip(said[first:], messages[first:], strict=True) if m["role"] == "assistant"]
            return Item(number, row, record, "\n".join(said), "\n".join(said[:first]), answers)
    prompt = "\n".join([_said(m) for m in record.prompt])
    if isinstance(record, Verdict):
        answers = ["\n".join([_said(m) for m in record.answer])]
    elif hasattr(record, "answers"):
        answers = ["\n".join([_said(m) for m in answer]) for answer in record.answers]
    else:
        answers = [] if record.reference is None else [record.reference]
    return Item(number, row, record, "\n".join([prompt, *answers]), prompt, answers)


def _said(message: Message) -> str:
    """Return what a turn says: its text, its reasoning and its calls' arguments."""
    content = message["content"]
    if len(message) == 2 and isinstance(content, str):
        return content
    if not isinstance(content, str):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict)) if content else ""
    parts = [content, *(str(message[k]) for k in ("reasoning_content", "thinking") if message.get(k))]
    for call in message.get("tool_calls") or []:
        parts.append(json.dumps(call["function"], ensure_ascii=False, default=str))
    return "\n".join(p for p in parts if p)


def called(record: Record) -> bool:
    """Say whether a record has tools, calls or results."""
    return bool(getattr(record, "tools", None)) or any("tool_calls" in m or m["role"] == "tool" for m in turns(record))
