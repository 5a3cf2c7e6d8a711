"""What is measured: one item per row of data, with its prompt, its reference and whatever the model made of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.layout import chat_text
from tunesmith.data.records import Chat, Message, Prompt, Record, Text
from tunesmith.model.decoding import decode, turn_end

_REASONING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


@dataclass
class Item:
    """A measured row. `scores` holds (numerator, weight) per metric, which is the one's sum over the other's."""

    record: Record
    prompt: list[Message] = field(default_factory=list)  # all before the last trained assistant turn, or a Prompt's
    reference: str | None = None  # that turn's text, or a Prompt's reference; None where the row has none
    answer: str | None = None
    nll: float = 0.0  # nats over the scored tokens
    tokens: int = 0  # scored tokens
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def category(self) -> str | None:
        """The row's own `category`, if it has one."""
        found = self.record.extra.get("category")
        return None if found is None else str(found)


def make_items(records: Sequence[Record], tokenizer: Any, unanswered: bool = False) -> list[Item]:
    """Return an item per record; one without a trained turn has no reference, plain Text no prompt either, and of a Preference
    or a Verdict the prompt alone is taken.

    A chat that ends with another's turn than the assistant's has a prompt if it brings a `check`, or with `unanswered`.
    """
    items = []
    for record in records:
        item = Item(record)
        if isinstance(record, Chat):
            turn = _last_trained(record)
            if turn is not None:
                item = Item(record, record.messages[:turn], _reference(record, turn, tokenizer))
            elif record.messages[-1]["role"] != "assistant" and (unanswered or "check" in record.extra):
                item = Item(record, record.messages)
        elif isinstance(record, Prompt):
            item = Item(record, record.prompt, record.reference)
        elif not isinstance(record, Text):
            item = Item(record, record.prompt)
        items.append(item)
    return items


def content_text(message: Message) -> str:
    """Return a message's text; of a list of parts, the text parts joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def visible(answer: str) -> str:
    """Return an answer without the reasoning block (<think>…</think>) it may open with: references do not hold one."""
    return _REASONING.sub("", answer, count=1)


def _last_trained(record: Chat) -> int | None:
    turns = (i for i in range(len(record.messages) - 1, -1, -1) if record.trained[i])
    return next((i for i in turns if record.messages[i]["role"] == "assistant"), None)


def _reference(record: Chat, turn: int, tokenizer: Any) -> str:
    message = record.messages[turn]
    return _rendered(record, turn, tokenizer) if message.get("tool_calls") else content_text(message)


def _rendered(record: Chat, turn: int, tokenizer: Any) -> str:
    """Return the turn as the template writes it and an answer is decoded: without end of turn and special tokens."""
    before = chat_text(record.messages[:turn], record.tools, tokenizer, record.origin, prompt=True)
    after = chat_text(record.messages[: turn + 1], record.tools, tokenizer, record.origin)
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    ids = tokenizer(after[same:], add_special_tokens=False).input_ids
    ends = {tokenizer.eos_token_id, turn_end(tokenizer)}
    last = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return visible(decode(tokenizer, ids[:last])).strip()
