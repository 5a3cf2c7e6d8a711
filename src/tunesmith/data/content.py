"""What a record says, whatever its kind: its texts with their places, and the same record with other texts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tunesmith.data.records import Chat, Message, Preference, Prompt, Record, Text, Verdict

Change = Callable[[str, str], str]
"""(place, text) -> the text to stand there."""
_SAID = ("content", "reasoning_content", "thinking")


def texts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of all that a record says: "messages[1].content", "answers[0][0].content", "reference", ...

    Tool calls' arguments are among them ("messages[1].tool_calls[0].function.arguments.city"); tools and extra fields are not.
    """
    found: list[tuple[str, str]] = []

    def seen(place: str, text: str) -> str:
        found.append((place, text))
        return text

    rewritten(record, seen)
    return iter(found)


def said(record: Record) -> str:
    """Return what the turns say, in order, a line break between them; of several answers all."""
    if isinstance(record, Text):
        return record.text
    return "\n".join(str(m["content"]) for m in turns(record))


def turns(record: Record) -> list[Message]:
    """Return all turns of a record in order, the answers' after the prompt's; none of a Text."""
    match record:
        case Chat():
            return record.messages
        case Preference():
            return record.prompt + [m for answer in record.answers for m in answer]
        case Verdict():
            return record.prompt + record.answer
        case Prompt():
            return record.prompt
    return []


def prompt_turns(record: Record) -> list[Message]:
    """Return the turns before the first answer; of a Text none."""
    if isinstance(record, Chat):
        first = next((i for i, m in enumerate(record.messages) if m["role"] == "assistant"), len(record.messages))
        return record.messages[:first]
    return [] if isinstance(record, Text) else record.prompt


def answer_texts(record: Record) -> list[str]:
    """Return what is learnt from: a Text's text, a Chat's trained answers, every answer of the others, a reference."""
    match record:
        case Text():
            return [record.text]
        case Chat():
            return [str(m["content"]) for m, t in zip(record.messages, record.trained, strict=True) if t]
        case Preference():
            return ["\n".join(str(m["content"]) for m in answer) for answer in record.answers]
        case Verdict():
            return ["\n".join(str(m["content"]) for m in record.answer)]
    return [] if record.reference is None else [record.reference]


def rewritten(record: Record, change: Change) -> Record:
    """Return the record with every text of `texts` as `change` gives it back; the record itself where all are the same."""
    match record:
        case Text():
            text = change("text", record.text)
            return record if text == record.text else replace(record, text=text)
        case Chat():
            messages = _messages(record.messages, "messages", change)
            return record if messages is record.messages else replace(record, messages=messages)
        case Verdict():
            prompt, answer = _messages(record.prompt, "prompt", change), _messages(record.answer, "answer", change)
            same = prompt is record.prompt and answer is record.answer
            return record if same else replace(record, prompt=prompt, answer=answer)
        case Preference():
            prompt = _messages(record.prompt, "prompt", change)
            answers = [_messages(a, f"answers[{i}]", change) for i, a in enumerate(record.answers)]
            same = prompt is record.prompt and all(a is b for a, b in zip(answers, record.answers, strict=True))
            return record if same else replace(record, prompt=prompt, answers=answers)
    prompt = _messages(record.prompt, "prompt", change)
    reference = None if record.reference is None else change("reference", record.reference)
    same = prompt is record.prompt and reference == record.reference
    return record if same else replace(record, prompt=prompt, reference=reference)


def _messages(messages: list[Message], where: str, change: Change) -> list[Message]:
    out, same = [], True
    for i, message in enumerate(messages):
        new = dict(message)
        for key in _SAID:
            if isinstance(message.get(key), str):
                new[key] = change(f"{where}[{i}].{key}", message[key])
        if message.get("tool_calls"):
            new["tool_calls"] = _strings(message["tool_calls"], f"{where}[{i}].tool_calls", change)
        same = same and new == message
        out.append(new)
    return messages if same else out


def _strings(value: Any, where: str, change: Change) -> Any:
    """Change every string in the arguments of tool calls; names and ids stay, or calls and results would part."""
    if isinstance(value, str):
        return change(where, value) if ".arguments" in where else value
    if isinstance(value, dict):
        return {k: _strings(v, f"{where}.{k}", change) for k, v in value.items()}
    if isinstance(value, list):
        return [_strings(v, f"{where}[{i}]", change) for i, v in enumerate(value)]
    return value
