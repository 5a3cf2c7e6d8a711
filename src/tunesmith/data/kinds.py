"""The one plain row of each kind of record, and a record read as another kind."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from tunesmith.data import detect
from tunesmith.data.formats._common import RowError, answers
from tunesmith.data.records import KINDS, Chat, Message, Preference, Prompt, Record, Text, Verdict

_BESIDE = ("extra_fields", "functions", "image", "images", "videos", "audios")  # read beside any format's own fields


def to_row(record: Record) -> dict[str, Any]:
    """Return the record as a row that JSON can write and the formats read back to an equal record (but for its origin).

    Text {"text"}; Chat {"messages", "tools"}, with "train": false on the assistant's turns that are not trained; Preference
    {"prompt", "chosen", "rejected"} with "score_chosen" and "score_rejected", of more answers {"prompt", "responses",
    "scores"} or {"prompt", "ranked_answers"}; Verdict {"prompt", "completion", "label"}; Prompt {"prompt", "ground_truth"}.
    Extra fields stand beside, or under "extra_fields" where they would change what the row means.
    """
    row = _plain(record)
    if not isinstance(record, Text) and record.tools:
        row["tools"] = record.tools
    if not record.extra:
        return row
    beside = {**row, **record.extra}
    if _fields_read().isdisjoint(record.extra):
        return beside
    if len(beside) == len(row) + len(record.extra) and _reads_back(beside, record):
        return beside
    return {**row, "extra_fields": record.extra}


def _plain(record: Record) -> dict[str, Any]:
    match record:
        case Text():
            return {"text": record.text}
        case Chat():
            return {"messages": _flagged(record)}
        case Verdict():
            return {"prompt": record.prompt, "completion": record.answer, "label": record.good}
        case Prompt():
            return {"prompt": record.prompt} | ({} if record.reference is None else {"ground_truth": record.reference})
    if len(record.answers) > 2 and record.scores is None:
        return {"prompt": record.prompt, "ranked_answers": record.answers}
    if len(record.answers) > 2:
        return {"prompt": record.prompt, "responses": record.answers, "scores": record.scores}
    row: dict[str, Any] = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    if record.scores is not None:
        row |= {"score_chosen": record.scores[0], "score_rejected": record.scores[1]}
    return row


def _flagged(chat: Chat) -> list[Message]:
    """Return the messages, those of the assistant's marked that have something to train on and are not trained."""
    return [
        m if trained or m["role"] != "assistant" or not answers(m) else {**m, "train": False}
        for m, trained in zip(chat.messages, chat.trained, strict=True)
    ]


@cache
def _fields_read() -> frozenset[str]:
    """Return every field that any format reads: one of another name beside them changes nothing of what a row means."""
    modules = detect.all_formats().values()
    return frozenset(_BESIDE).union(*(m.FIELDS for m in modules), *(getattr(m, "SIGNS", ()) for m in modules))


def _reads_back(row: dict[str, Any], record: Record) -> bool:
    found = detect.best_match(row)
    try:
        return found is not None and detect.convert(row, record.origin, found[0]) == [record]
    except RowError:
        return False


def as_kind(record: Record, kind: str) -> list[Record]:
    """Return the record read as `kind` ("chat", "verdict", ...), a list of none, one or several; itself where it is of that kind.

    preference -> chat of its best answer; verdicts, good of the best (all that tie for it), bad of the others, none where
    all tie; prompt. verdict -> chat, if good; prompt (a good answer is its reference). chat -> prompt, its last trained
    answer the reference. prompt -> chat, if it has a reference. RowError where the kind cannot be made of it.
    """
    if KINDS[type(record)] == kind:
        return [record]
    match record, kind:
        case Preference(), "chat":
            return [_chat(record, record.chosen)]
        case Preference(), "verdict":
            return _verdicts(record)
        case Preference(), "prompt":
            return [Prompt(record.prompt, record.origin, None, record.tools, record.extra)]
        case Verdict(), "chat":
            return [_chat(record, record.answer)] if record.good else []
        case Verdict(), "prompt":
            reference = _said(record.answer[-1]) if record.good else None
            return [Prompt(record.prompt, record.origin, reference, record.tools, record.extra)]
        case Prompt(), "chat":
            return as_chats(record) if record.reference is not None else []  # type: ignore[return-value]
        case Chat(), "prompt":
            return _prompt(record)
    message = f"a {KINDS[type(record)]} row cannot be read as {kind}; give rows that say it, or take this source out."
    raise RowError(record.origin, None, "wrong_kind", message)


def as_chats(record: Record) -> list[Chat]:
    """Return what a template renders for the record: each answer after its prompt, only the answer's turns trained.

    A Chat is itself; a Prompt has its reference as the answer, or nothing trained; a Text has no chat.
    """
    match record:
        case Text():
            return []
        case Chat():
            return [record]
        case Preference():
            return [_chat(record, answer) for answer in record.answers]
        case Verdict():
            return [_chat(record, record.answer)]
    answer = [] if record.reference is None else [{"role": "assistant", "content": record.reference}]
    return [_chat(record, answer)]


def is_empty(answer: Sequence[Message]) -> bool:
    """Whether an answer's turns hold nothing to learn: no text and no tool call of the assistant's."""
    return not any(m["role"] == "assistant" and answers(m) for m in answer)


def _chat(record: Preference | Verdict | Prompt, answer: list[Message]) -> Chat:
    trained = [False] * len(record.prompt) + [m["role"] == "assistant" and answers(m) for m in answer]
    return Chat(record.prompt + answer, trained, record.origin, record.tools, record.extra)


def _verdicts(record: Preference) -> list[Record]:
    best = 1 if record.scores is None else record.scores.count(record.scores[0])
    if best == len(record.answers):
        return []
    return [
        Verdict(record.prompt, answer, i < best, record.origin, record.tools, record.extra)
        for i, answer in enumerate(record.answers)
    ]


def _prompt(chat: Chat) -> list[Record]:
    """Return the turns before the last trained answer as a Prompt, the answer its reference; none where there is no such answer."""
    last = next((i for i in range(len(chat.messages) - 1, 0, -1) if chat.trained[i]), None)
    if last is None:
        return []
    reference = _said(chat.messages[last])
    return [Prompt(chat.messages[:last], chat.origin, reference, chat.tools, chat.extra)]


def _said(answer: Message) -> str | None:
    """Return what an answer says, None of a tool call alone, which no text is compared with."""
    return str(answer["content"]) if str(answer["content"]).strip() else None
