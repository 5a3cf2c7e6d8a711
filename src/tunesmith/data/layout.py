"""Where a conversation's answers stand in the text its chat template makes, and which characters a token stands for."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data import sandbox
from tunesmith.data.records import Chat, Message

CLOCK = re.compile(r"""strftime_now\s*\(\s*(["'])([^"'\n]{0,100})\1\s*\)|strftime_now is (?:not )?defined""")
"""How a template asks for the date, with its format; and how it asks whether it can."""

Span = tuple[int, int, bool, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered example before tokenisation: its text and the character spans that are scored.

    A span is (start, end, closed, turn): closed says that it ends with an end-of-turn token; turn is its message's index.
    """

    text: str
    spans: list[Span]


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
    messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any, origin: object, prompt: bool = False
) -> str:
    """Return the template's rendering (with the generation prompt if `prompt`); InputError with the row if it refuses."""
    return sandbox.text(sandbox.Job(messages, tools, prompt, origin), tokenizer, template(tokenizer))


def chat_texts(chats: Iterable[Chat], tokenizer: Any) -> Iterator[str]:
    """Yield each conversation's rendering, as chat_text does one."""
    return sandbox.run(
        (sandbox.Job(c.messages, c.tools, False, c.origin) for c in chats), tokenizer, template(tokenizer)
    )


def lay_out(chats: Iterable[Chat], tokenizer: Any, ends: tuple[str, ...]) -> Iterator[list[Layout]]:
    """Yield the examples each Chat makes: one, or one per trained answer where the template rewrites history.

    An answer is found by rendering turn by turn: it is what the rendering up to and including it has beyond the
    rendering before it with the generation prompt (beyond their common prefix, where the template changes that
    prompt), without the white space after its end-of-turn token. What follows the last trained answer is left out.
    """
    jobs = (sandbox.Job(c.messages, c.tools, answers_of(c), c.origin) for c in chats)
    for layouts in sandbox.run(jobs, tokenizer, template(tokenizer), ends):
        yield [Layout(text, [tuple(span) for span in spans]) for text, spans in layouts]


def answers_of(chat: Chat) -> list[int]:
    """Return the turns of the answers that are trained on; one at the very beginning answers nothing."""
    return [i for i, trained in enumerate(chat.trained) if trained and i]


def written(chat: Chat, layout: Layout) -> Layout:
    """Leave out the spans of answers that the template does not write: they would teach to say nothing."""
    return Layout(layout.text, [span for span in layout.spans if not unwritten(chat, layout, span)])


def unwritten(chat: Chat, layout: Layout, span: Span) -> str:
    """Return what the template leaves out of an answer, "calls" or "text", or "".

    Templates trim and move what is said, so of a text one word is asked for, the longest of its end.
    """
    message, said = chat.messages[span[3]], layout.text[span[0] : span[1]]
    if any(call["function"]["name"] not in said for call in message.get("tool_calls") or []):
        return "calls"
    words = str(message.get("content") or "").split()[-8:]
    return "text" if words and max(words, key=len) not in said else ""


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


def encode_spans(
    texts: list[str], spans: list[list[Span]], tokenizer: Any
) -> Iterator[tuple[npt.NDArray[np.int32], list[tuple[int, int]]]]:
    """Yield each text's token ids (T,), and per span the range of the tokens that overlap it, (first, after the last).

    The ranges are what `encode`'s characters tell; asking for the tokens at a span's edges alone takes a quarter less time.
    """
    for encoding, wanted in zip(
        _unlimited(tokenizer).encode_batch(texts, add_special_tokens=False), spans, strict=True
    ):
        ids = np.fromiter(encoding.ids, np.int32, len(encoding))
        yield ids, [token_range(encoding, start, end, len(ids)) for start, end, _, _ in wanted]


def token_range(encoding: Any, start: int, end: int, count: int) -> tuple[int, int]:
    """Return the range of the `count` tokens that overlap the characters from start to end, (0, 0) where none does.

    Characters that no token reports belong to the next one that does, as in `encode`.
    """
    first = _token_at(encoding, start, count) if start < end else None
    if first is None:
        return 0, 0
    last = _token_at(encoding, end - 1, count)
    last = count - 1 if last is None else last
    while last + 1 < count and encoding.token_to_chars(last + 1)[0] < end:  # several tokens of one character
        last += 1
    return first, last + 1


def _token_at(encoding: Any, character: int, count: int) -> int | None:
    """Return the first token that reports a character, or the next one that a token reports; None behind the last."""
    behind = encoding.token_to_chars(count - 1)[1] if count else 0
    return next((t for c in range(character, behind) if (t := encoding.char_to_token(c)) is not None), None)


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
