"""Who says what: empty turns, the order of roles, conversations without an answer, answers that prefer nothing."""

from typing import Any

from tunesmith.data.checks.found import Found, Item, excerpt
from tunesmith.data.formats._common import answers
from tunesmith.data.records import Chat, Message, Preference, Prompt, Text, Verdict

_PROMPTS = ("instruction", "prompt", "question", "query", "input", "inputs")
_ANSWERS = ("output", "completion", "response", "answer", "targets", "label")
_LISTS = ("messages", "conversations", "conversation")


def check(item: Item, found: Found) -> None:
    """Note what is wrong with a record's turns."""
    match item.record:
        case Chat():
            _chat(item, item.record, found)
        case Text():
            if not item.record.text.strip():
                found.add("empty_text", item.number, "text", "the text is empty.")
        case Preference():
            _preference(item, item.record, found)
        case Verdict():
            _prompt(item, item.record.prompt, found)
            _answer(item, item.record.answer, "the answer", ("completion", *_ANSWERS, *_LISTS), found)
        case Prompt():
            _prompt(item, item.record.prompt, found)
            if item.record.reference is not None and not item.record.reference.strip():
                found.add(
                    "empty_reference",
                    item.number,
                    _first(item.row, ("reference", "ground_truth", *_ANSWERS)),
                    "the reference answer is empty.",
                )


def _chat(item: Item, chat: Chat, found: Found) -> None:
    messages = chat.messages
    roles = [m["role"] for m in messages]
    if roles in (["user", "assistant"], ["system", "user", "assistant"]):  # in order: only emptiness is left to see
        if not messages[-2]["content"] or not str(messages[-2]["content"]).strip():
            found.add(
                "empty_prompt",
                item.number,
                field_of(chat, item.row, len(roles) - 2),
                f"turn {len(roles) - 1} (user) is empty.",
            )
        if not answers(messages[-1]):
            _empty_answer(item, chat, len(roles) - 1, found)
        return
    for i, message in enumerate(messages):
        turn = f"turn {i + 1} ({roles[i]})"
        if roles[i] == "assistant" and not answers(message):
            _empty_answer(item, chat, i, found)
        elif roles[i] == "user" and not str(message["content"]).strip():
            found.add("empty_prompt", item.number, field_of(chat, item.row, i), f"{turn} is empty.")
        if wrong := wrong_order(roles[:i], roles[i]):
            found.add(
                "role_order",
                item.number,
                field_of(chat, item.row, i),
                f"{turn} {wrong}.",
                excerpt(str(message["content"])),
            )
    last = len(roles) - 1
    if "assistant" not in roles:
        said = "the conversation has no assistant turn, so there is nothing to train on."
        found.add("no_answer", item.number, field_of(chat, item.row, last), said, excerpt(item.text))
    elif roles[-1] in ("user", "system"):
        sample = excerpt(str(messages[-1]["content"]))
        found.add(
            "ends_without_answer",
            item.number,
            field_of(chat, item.row, last),
            f"the last turn is the {roles[-1]}'s.",
            sample,
        )


def _empty_answer(item: Item, chat: Chat, i: int, found: Found) -> None:
    message = f"turn {i + 1} (assistant) is an empty answer; it is not trained on."
    found.add("empty_answer", item.number, field_of(chat, item.row, i), message, excerpt(item.prompt) or None)


def _preference(item: Item, record: Preference, found: Found) -> None:
    _prompt(item, record.prompt, found)
    for i, answer in enumerate(record.answers):
        name = "chosen" if i == 0 else "rejected"
        _answer(
            item,
            answer,
            f"answer {i + 1} of {len(record.answers)} (the {'best' if i == 0 else 'worse'})",
            (name, *_ANSWERS, "answers"),
            found,
        )
    best, worst = record.chosen, record.rejected
    if _said(best) == _said(worst) and _said(best):
        message = "the best and the worst answer are the same, so there is nothing to prefer."
        found.add(
            "equal_answers",
            item.number,
            _first(item.row, ("chosen", "chosen_messages", "answers")),
            message,
            excerpt(item.answers[0]),
        )
    elif record.scores and min(record.scores) == max(record.scores):
        message = f"all answers have the score {record.scores[0]:g}, so there is nothing to prefer."
        found.add("tied_scores", item.number, _first(item.row, ("scores", "score", "score_chosen")), message)


def _said(answer: list[Message]) -> list[tuple[str, str]]:
    return [(str(m["content"]).strip(), str(m.get("tool_calls", ""))) for m in answer]


def _prompt(item: Item, prompt: list[Message], found: Found) -> None:
    """Note the turns of a prompt that are empty or out of order, and a prompt that does not end with a question."""
    field = _first(item.row, (*_PROMPTS, *_LISTS, "chosen", "chosen_messages"))
    if not any(str(m["content"]).strip() for m in prompt if m["role"] != "system"):
        found.add("empty_prompt", item.number, field, "the prompt is empty.")
        return
    roles = [m["role"] for m in prompt]
    for i, role in enumerate(roles):
        if wrong := wrong_order(roles[:i], role):
            found.add(
                "role_order", item.number, field, f"turn {i + 1} ({role}) {wrong}.", excerpt(str(prompt[i]["content"]))
            )
    if roles[-1] == "assistant":
        found.add(
            "role_order", item.number, field, "the prompt ends with an assistant turn, to which an answer is no answer."
        )


def _answer(item: Item, answer: list[Message], name: str, fields: tuple[str, ...], found: Found) -> None:
    if not any(answers(m) for m in answer if m["role"] == "assistant"):
        found.add(
            "empty_answer", item.number, _first(item.row, fields), f"{name} is empty.", excerpt(item.prompt) or None
        )


def wrong_order(before: list[str], role: str) -> str | None:
    """Return what is wrong with a turn of that role after those, in words; None where nothing is."""
    if role == "system" and before:
        return "is a system turn that is not the first"
    if role == "assistant" and not {"user", "tool"} & set(before):
        return "answers before anyone asked"
    if role in ("user", "assistant") and before[-1:] == [role]:
        return f"follows another {role} turn"
    return None


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((f for f in names if f in row), None)


def field_of(chat: Chat, row: dict[str, Any], turn: int) -> str | None:
    """Return the row's own field that turn `turn` came from."""
    listed = _first(row, _LISTS)
    if listed and isinstance(row[listed], list):
        prepended = chat.messages[0]["role"] == "system" and bool(row.get("system"))
        return f"{listed}[{turn - prepended}]"
    if chat.messages[turn]["role"] == "system":
        return "system"
    if turn < len(chat.messages) - 2:
        return "history"
    names = _ANSWERS if turn == len(chat.messages) - 1 else _PROMPTS
    return _first(row, names) or listed
