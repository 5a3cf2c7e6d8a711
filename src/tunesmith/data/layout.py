"""Where a conversation's answers stand in the text its chat template makes, and which characters a token stands for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Chat, Message, Origin
from tunesmith.errors import InputError

CLOCK = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)|strftime_now is (?:not )?defined""")
"""How a template asks for the date, with its format; and how it asks whether it can."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered example before tokenisation: its text and the character spans that are scored.

    A span is (start, end, closed, turn): closed says that it ends with an end-of-turn token; turn is its message's index.
    """

    text: str
    spans: list[tuple[int, int, bool, int]]


def end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the tokenizer's special tokens as strings; one must end an answer, or generation would never stop."""
    added = {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens)))


def reads_clock(tokenizer: Any) -> bool:
    """Say whether the chat template asks for the date, as Llama 3.2's does."""
    return "strftime_now" in str(tokenizer.chat_template)


def fix_clock(tokenizer: Any, day: str) -> None:
    """Let templates that ask for the date be told `day` (YYYY-MM-DD): a run that is resumed later must render the same.

    The template the tokenizer is saved with stays as it is; a template that does not tell the format it wants is not helped.
    """
    tokenizer.clock = datetime.fromisoformat(day)
    if isinstance(tokenizer.chat_template, str):
        told = CLOCK.sub(
            lambda m: json.dumps(tokenizer.clock.strftime(m[2])) if m[1] else m[0], tokenizer.chat_template
        )
        tokenizer.dated_template = told


def template(tokenizer: Any) -> str | None:
    """Return the chat template that has been told a date, or None: the tokenizer's own."""
    return getattr(tokenizer, "dated_template", None)


def chat_text(
    messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any, origin: Origin, prompt: bool = False
) -> str:
    """Return the template's rendering (with the generation prompt if `prompt`); InputError with the row if it refuses."""
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template(tokenizer), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a program: it raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        roles = ", ".join(m["role"] for m in messages[:6]) + (", …" if len(messages) > 6 else "")
        raise InputError(
            f"{origin}: the model's chat template refuses this conversation ({reason}); its roles are {roles}. "
            "Change the row, or use a model whose template takes it."
        ) from error
    return text


def lay_out(chat: Chat, tokenizer: Any, ends: tuple[str, ...]) -> list[Layout]:
    """Return the examples a Chat makes: one, or one per trained answer where the template rewrites history.

    An answer is found by rendering turn by turn: it is what the rendering up to and including it has beyond the
    rendering before it with the generation prompt (beyond their common prefix, where the template changes that
    prompt), without the white space after its end-of-turn token. What follows the last trained answer is left out.
    """
    answers = [i for i, trained in enumerate(chat.trained) if trained and i]
    upto: list[str] = []
    spans: list[tuple[int, int, bool, int]] = []
    for k in answers:
        before = chat_text(chat.messages[:k], chat.tools, tokenizer, chat.origin, prompt=True)
        text = chat_text(chat.messages[: k + 1], chat.tools, tokenizer, chat.origin)
        body = text.rstrip()
        closed = body.endswith(ends)
        upto.append(text)
        spans.append((_common_prefix(before, text), len(body) if closed else len(text), closed, k))
    if not answers:
        return []
    whole = upto[-1]
    if all(whole.startswith(text[: span[1]]) for text, span in zip(upto, spans, strict=True)):
        return [Layout(whole, spans)]
    return [Layout(text, [span]) for text, span in zip(upto, spans, strict=True)]


def written(chat: Chat, layout: Layout) -> Layout:
    """Leave out the spans of answers whose tool calls the template does not write: they would teach to say nothing."""

    def whole(span: tuple[int, int, bool, int]) -> bool:
        calls = chat.messages[span[3]].get("tool_calls") or []
        return all(call["function"]["name"] in layout.text[span[0] : span[1]] for call in calls)

    return Layout(layout.text, [span for span in layout.spans if whole(span)])


def encode(
    texts: list[str], tokenizer: Any
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield each text's token ids (T,), and the characters each token stands for: starts (T,), ends (T,).

    No special tokens are added: templates write their own. A token starts where the one before ended, for some
    tokenizers leave white space out of the offsets they report.
    """
    backend = _unlimited(tokenizer)
    for encoding in backend.encode_batch(texts, add_special_tokens=False):
        ids = np.fromiter(encoding.ids, np.int32, len(encoding))
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding)).reshape(-1, 2)
        stops = np.maximum.accumulate(offsets[:, 1]) if len(ids) else offsets[:, 1]
        before = np.concatenate([[0], stops[:-1]]) if len(ids) else stops
        yield ids, np.minimum(offsets[:, 0], before), stops


def encode_ids(texts: list[str], tokenizer: Any) -> Iterator[npt.NDArray[np.int32]]:
    """Yield each text's token ids alone, (T,), the same as `encode` gives in up to a third less time."""
    for encoding in _unlimited(tokenizer).encode_batch_fast(texts, add_special_tokens=False):
        yield np.fromiter(encoding.ids, np.int32, len(encoding))


def _unlimited(tokenizer: Any) -> Any:
    """Return the tokenizers library's object, which neither cuts nor pads."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
