"""The last question and the last answer of a record, and the record with others."""

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.content import prompt_turns
from tunesmith.data.records import Chat, Message, Origin, Preference, Record, Text, Verdict


def question(record: Record) -> str | None:
    """Return what the user asks last before the first answer; None where nobody asks."""
    return next((str(m["content"]) for m in reversed(prompt_turns(record)) if m["role"] == "user"), None)


def asked_turns(record: Record) -> tuple[tuple[str, str], ...] | None:
    """Return (role, content) of the turns before the first answer; None where they are not text alone, or nobody asks.

    A prompt with tools is none: a model that is not offered them answers another question.
    """
    turns = [] if isinstance(record, Text) or record.tools else prompt_turns(record)
    if (
        not turns
        or turns[-1]["role"] != "user"
        or not all(_is_text(m) for m in turns)
        or not turns[-1]["content"].strip()
    ):
        return None
    return tuple((str(m["role"]), str(m["content"])) for m in turns)


def own_answers(record: Record) -> list[str]:
    """Return the answers of text that a record itself has to what `asked_turns` asks."""
    if isinstance(record, Chat):
        place = len(prompt_turns(record))
        answers = [record.messages[place : place + 1]]
    elif isinstance(record, Preference):
        answers = record.answers
    else:
        answers = [record.answer] if isinstance(record, Verdict) else []
    return [str(a[0]["content"]) for a in answers if len(a) == 1 and _is_text(a[0])]


def as_messages(turns: Sequence[tuple[str, str]]) -> list[Message]:
    """Return (role, content) turns in OpenAI's form."""
    return [{"role": role, "content": content} for role, content in turns]


def category(record: Record) -> dict[str, object]:
    """Return the record's field `category`, by which results are told apart, if it has one."""
    return {key: value for key, value in record.extra.items() if key == "category"}


def shown(turns: Sequence[tuple[str, str]]) -> str:
    """Return turns as one text: what a single one says, else each behind its role."""
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)


def _is_text(message: Message) -> bool:
    return isinstance(message.get("content"), str) and not message.get("tool_calls") and message["role"] != "tool"


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
