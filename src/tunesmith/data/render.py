"""From records to tokens: through the tokenizer's own chat template, with a mask of what is scored."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data import coverage
from tunesmith.data.records import Chat, Examples, Message, Origin, Record, Text
from tunesmith.errors import InputError

Score = Literal["answers", "all"]
_BATCH = 1000
_EVERYTHING = 1 << 60


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered example before tokenisation: its text and the character spans that are scored.

    A span is (start, end, closed, turn): closed says that it ends with an end-of-turn token, turn is the message's index.
    """

    text: str
    spans: list[tuple[int, int, bool, int]]


@dataclass
class _Counts:
    """Origins of the records that something happened to, for the notices."""

    unscored: list[Origin] = field(default_factory=list)
    leading: list[Origin] = field(default_factory=list)
    no_tools: list[Origin] = field(default_factory=list)
    no_reasoning: list[Origin] = field(default_factory=list)
    cut: list[Origin] = field(default_factory=list)
    dropped: list[Origin] = field(default_factory=list)
    windows: list[Origin] = field(default_factory=list)
    rewritten: int = 0
    chats: int = 0
    closed: int = 0


def render(
    records: Sequence[Record], tokenizer: Any, max_length: int | None = None, score: Score = "answers"
) -> tuple[Examples, list[str]]:
    """Return the records as token sequences, and notices for people.

    score "answers": of a Chat the trained answers are scored, each with its end-of-turn token; where the template rewrites
    history (no answer's rendering may be a prefix of the whole) each answer is an example of its own. "all": every
    token is. A Text is bos (where the tokenizer adds one), text, eos, all scored. The first token of an example never is.
    Longer than max_length: a Chat's end is cut off, and it is dropped if nothing scored is left; a Text, or anything under
    "all", is cut into windows that overlap by one token, so that each token is scored once.
    InputError where nothing is scored, no answer's end is, or the vocabulary loses over 5% of the characters.
    """
    notices = coverage.check(records, tokenizer)
    counts = _Counts()
    ends = end_tokens(tokenizer)
    pieces: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]] = []
    laid = _lay_all_out(records, tokenizer, ends, score, counts)
    for index, layout, ids, starts, stops in _tokenized(laid, tokenizer):
        if isinstance(records[index], Text) or score == "all":
            pieces += _windows(index, _framed(ids, records[index], tokenizer), max_length, records, counts)
            continue
        scored, last = _mask(layout.spans, starts, stops)
        limit = max_length or len(ids)
        if not scored[:limit].any():
            (counts.dropped if scored.any() else counts.unscored).append(records[index].origin)
            continue
        if len(ids) > limit:
            counts.cut.append(records[index].origin)
        counts.closed += any(span[2] and at < limit for span, at in zip(layout.spans, last, strict=True))
        pieces.append((index, ids[:limit], scored[:limit]))
    _refuse(records, counts, pieces, score, max_length)
    return _examples(pieces, records), notices + _notices(counts, max_length)


def end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the tokenizer's special tokens as strings; one of them must end an answer, or generation would never stop."""
    added = {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens)))


def chat_text(
    messages: list[Message], tools: list[dict[str, Any]] | None, tokenizer: Any, origin: Origin, prompt: bool = False
) -> str:
    """Return the template's rendering (with the generation prompt if `prompt`); InputError naming the row if it refuses."""
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

    An answer is found by rendering turn by turn: it is what the rendering up to and including it has beyond the rendering
    before it with the generation prompt (beyond their common prefix, where the template changes that prompt), without the
    white space that follows its end-of-turn token. What follows the last trained answer is left out.
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


def _lay_all_out(
    records: Sequence[Record], tokenizer: Any, ends: tuple[str, ...], score: Score, counts: _Counts
) -> Iterator[tuple[int, Layout]]:
    for index, record in enumerate(records):
        if isinstance(record, Text):
            if record.text.strip():
                yield index, Layout(record.text, [])
            else:
                counts.unscored.append(record.origin)
        elif score == "all":
            yield index, Layout(chat_text(record.messages, record.tools, tokenizer, record.origin), [])
        else:
            counts.chats += 1
            if record.trained[0]:
                counts.leading.append(record.origin)
            layouts = lay_out(record, tokenizer, ends)
            counts.rewritten += len(layouts) > 1
            kept = [_without_lost_turns(record, layout, counts) for layout in layouts]
            if not any(layout.spans for layout in kept):
                counts.unscored.append(record.origin)
            yield from ((index, layout) for layout in kept if layout.spans)


def _without_lost_turns(chat: Chat, layout: Layout, counts: _Counts) -> Layout:
    """Do not score an answer whose tool calls the template leaves out: it would teach to say nothing instead."""
    spans = []
    for span in layout.spans:
        message, text = chat.messages[span[3]], layout.text[span[0] : span[1]]
        calls = message.get("tool_calls") or []
        if any(call["function"]["name"] not in text for call in calls):
            counts.no_tools.append(chat.origin)
            continue
        reasoning = message.get("reasoning_content")
        if reasoning and reasoning.strip()[:40] not in text:
            counts.no_reasoning.append(chat.origin)
        spans.append(span)
    return Layout(layout.text, spans)


def _tokenized(
    laid: Iterable[tuple[int, Layout]], tokenizer: Any
) -> Iterator[tuple[int, Layout, npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    batch: list[tuple[int, Layout]] = []
    for item in laid:
        batch.append(item)
        if len(batch) == _BATCH:
            yield from _tokenize(batch, tokenizer)
            batch = []
    yield from _tokenize(batch, tokenizer)


def _tokenize(
    batch: list[tuple[int, Layout]], tokenizer: Any
) -> Iterator[tuple[int, Layout, npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    encodings = encode([layout.text for _, layout in batch], tokenizer)
    for (index, layout), (ids, starts, stops) in zip(batch, encodings, strict=True):
        yield index, layout, ids, starts, stops


def encode(
    texts: list[str], tokenizer: Any
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield each text's token ids (T,), and the characters each token stands for: starts (T,), ends (T,).

    No special tokens are added: templates write their own. A token starts where the one before ended, for some tokenizers
    leave white space out of the offsets they report.
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


def _mask(
    spans: list[tuple[int, int, bool, int]], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Return (scored (T,), the index of each span's last token): a token that overlaps a span is scored."""
    scored = np.zeros(len(starts), dtype=np.bool_)
    last = []
    for start, end, _, _ in spans:
        inside = (starts < end) & (stops > start)
        scored |= inside
        found = np.flatnonzero(inside)
        last.append(int(found[-1]) if len(found) else _EVERYTHING)
    scored[:1] = False
    return scored, last


def _framed(ids: npt.NDArray[np.int32], record: Record, tokenizer: Any) -> npt.NDArray[np.int32]:
    """Return a text's ids between bos, where the tokenizer itself would add one, and eos; a Chat's as they are."""
    if isinstance(record, Chat):
        return ids
    own = tokenizer("a").input_ids
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and own[:1] == [tokenizer.bos_token_id] else []
    eos = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return np.concatenate([np.array(bos, np.int32), ids, np.array(eos, np.int32)])


def _windows(
    index: int, ids: npt.NDArray[np.int32], max_length: int | None, records: Sequence[Record], counts: _Counts
) -> list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]]:
    """Cut into windows; each begins with the last token of the one before as context, so that each token is scored once."""
    length = max_length or len(ids)
    if len(ids) < 2:
        counts.unscored.append(records[index].origin)
        return []
    if len(ids) > length:
        counts.windows.append(records[index].origin)
    out = []
    for start in range(0, len(ids) - 1, max(length - 1, 1)):
        window = ids[start : start + max(length, 2)]
        scored = np.ones(len(window), dtype=np.bool_)
        scored[0] = False
        out.append((index, window, scored))
    return out


def _examples(
    pieces: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.bool_]]], records: Sequence[Record]
) -> Examples:
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(ids) for _, ids, _ in pieces], out=offsets[1:])
    return Examples(
        ids=np.concatenate([ids for _, ids, _ in pieces]),
        scored=np.concatenate([scored for _, _, scored in pieces]),
        offsets=offsets,
        record=np.array([index for index, _, _ in pieces], dtype=np.int64),
        origins=[record.origin for record in records],
    )


def _common_prefix(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def where(origins: Sequence[Origin], most: int = 5) -> str:
    """Name the first few rows: "data.jsonl, rows 3, 8, 12 and 4 more"."""
    unique = list(dict.fromkeys(origins))
    same = [o for o in unique if o.file == unique[0].file][:most]
    rows = ", ".join(str(o.row) for o in same)
    more = f" and {len(unique) - len(same)} more" if len(unique) > len(same) else ""
    return f"{unique[0].file}, row{'s' * (len(unique) > 1)} {rows}{more}"


def _refuse(
    records: Sequence[Record], counts: _Counts, pieces: Sequence[Any], score: Score, max_length: int | None
) -> None:
    if not records:
        raise InputError("there are no rows to train on.")
    if not pieces:
        if counts.dropped:
            raise InputError(
                f"no answer is left within max_length {max_length}: all {len(counts.dropped)} rows are longer before their "
                f"first answer begins ({where(counts.dropped)}); raise train.max_length."
            )
        if counts.no_tools:
            raise InputError(
                f"nothing would be scored: the answers are tool calls, which the model's chat template does not write "
                f"({where(counts.no_tools)})."
            )
        raise InputError(f"nothing would be scored: no row has an answer to train on ({where(counts.unscored)}).")
    if score == "answers" and counts.chats and not counts.closed:
        if counts.cut:
            raise InputError(
                f"no answer's end is left within max_length {max_length}: the model would never learn to stop "
                f"({where(counts.cut)}); raise train.max_length."
            )
        raise InputError(
            "the model's chat template ends no answer with a special token of its tokenizer, so the model would never learn "
            "to stop; use a template that ends answers with one, or add that token to the tokenizer."
        )


def _notices(counts: _Counts, max_length: int | None) -> list[str]:
    def say(origins: Sequence[Origin], what: str) -> list[str]:
        n = len(dict.fromkeys(origins))
        return [f"{n:,} row{'s' * (n != 1)} {what} ({where(origins)})"] if n else []

    rewritten = f"{counts.rewritten:,} conversations make one example per answer: the chat template rewrites history"
    return [
        *([rewritten] if counts.rewritten else []),
        *say(counts.unscored, "left out: nothing to score (no answer, or an empty one)"),
        *say(counts.leading, "begin with an answer to nothing, which is not scored"),
        *say(counts.no_tools, "hold tool calls that the chat template does not write; those turns are not scored"),
        *say(counts.no_reasoning, "hold reasoning that the chat template does not write"),
        *say(counts.cut, f"cut at max_length {max_length}"),
        *say(counts.dropped, f"left out: no answer within max_length {max_length}"),
        *say(counts.windows, f"longer than max_length {max_length}: cut into windows"),
    ]
