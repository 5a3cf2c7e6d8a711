"""The last question and the last answer of a record, and the record with others."""

from dataclasses import replace

from tunesmith.data.content import prompt_turns
from tunesmith.data.records import Chat, Message, Origin, Record, Text


def question(record: Record) -> str | None:
    """Return what the user asks last before the first answer; None where nobody asks."""
    return next((str(m["content"]) for m in reversed(prompt_turns(record)) if m["role"] == "user"), None)


def with_question(record: Record, said: str) -> Record:
    """Return the record with that turn saying something else."""
    assert not isinstance(record, Text)
    before = prompt_turns(record)
    place = max(i for i, m in enumerate(before) if m["role"] == "user")
    messages = list(record.messages if isinstance(record, Chat) else record.prompt)
    messages[place] = {**messages[place], "content": said}
    return replace(record, messages=messages) if isinstance(record, Chat) else replace(record, prompt=messages)


def answer(record: Record) -> str | None:
    """Return the text of a chat's first trained answer, None where it has none (or a tool call)."""
    place = _answer_place(record)
    return None if place is None else str(record.messages[place]["content"])  # type: ignore[union-attr]


def with_answer(record: Record, said: str) -> Record:
    """Return the chat with that answer saying something else."""
    place = _answer_place(record)
    assert isinstance(record, Chat)
    assert place is not None
    messages = list(record.messages)
    messages[place] = {**messages[place], "content": said}
    return replace(record, messages=messages)


def _answer_place(record: Record) -> int | None:
    if not isinstance(record, Chat):
        return None
    return next(
        (
            i
            for i, (m, trained) in enumerate(zip(record.messages, record.trained, strict=True))
            if trained and not m.get("tool_calls") and str(m["content"]).strip()
        ),
        None,
    )


def exchange(asked: str, answered: str, origin: Origin, system: str = "", category: object = None) -> Chat:
    """Return a new chat of one question and its trained answer."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    extra = {} if category is None else {"category": category}
    return Chat(messages, [False] * (len(messages) - 1) + [True], origin, extra=extra)
