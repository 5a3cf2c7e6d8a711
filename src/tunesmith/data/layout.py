"""Where a conversation's answers stand in the text its chat template makes, and which characters a token stands for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Chat, Message, Origin
from tunesmith.errors import InputError


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


def chat_text(
    messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any, origin: Origin, prompt: bool = False
) -> str:
    """Return the template's rendering (with the generation prompt if `prompt`); InputError with the row if it refuses."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
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
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for encoding in backend.encode_batch(texts, add_special_tokens=False):
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        stops = np.maximum.accumulate(offsets[:, 1]) if len(ids) else offsets[:, 1]
        before = np.concatenate([[0], stops[:-1]]) if len(ids) else stops
        yield ids, np.minimum(offsets[:, 0], before), stops


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
