"""From records to tokens: through the tokenizer's own chat template, with a mask of what is scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data import coverage
from tunesmith.data.layout import Layout, chat_text, encode, encode_ids, end_tokens, lay_out, written
from tunesmith.data.records import Chat, Examples, Origin, Record, Text
from tunesmith.errors import InputError

Score = Literal["answers", "all"]
Ids = npt.NDArray[np.int32]
Chars = npt.NDArray[np.int64]
Piece = tuple[int, Ids, npt.NDArray[np.bool_]]  # record's index, ids, scored
_BATCH = 1000
_EVERYTHING = 1 << 60


@dataclass
class _Counts:
    """Origins of the records that something happened to, for the notices; and numbers of records."""

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

    score "answers": of a Chat the trained answers are scored, each with its end-of-turn token; where the template
    rewrites history (some answer's rendering is no prefix of the whole) each answer is an example of its own. "all":
    every token is. A Text is bos (where the tokenizer adds one), text, eos, all scored. The first token of an example
    never is. Longer than max_length: a Chat's end is cut off, and it is dropped if nothing scored is left; a Text, or
    anything under "all", is cut into windows that overlap by one token, so that each token is scored once.
    InputError where nothing is scored, no answer's end is, or the vocabulary loses over 5% of the characters.
    """
    notices = coverage.check(records, tokenizer)
    counts = _Counts()
    ends, (bos, eos) = end_tokens(tokenizer), edges(tokenizer)
    pieces: list[Piece] = []
    laid = _lay_all_out(records, tokenizer, ends, score, counts)
    for index, layout, ids, starts, stops in _tokenized(laid, tokenizer):
        if isinstance(records[index], Text) or score == "all":
            if isinstance(records[index], Text):
                ids = np.concatenate([bos, ids, eos])
            pieces += _windows(index, ids, max_length, records, counts)
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
    kept = written(chat, layout)
    counts.no_tools += [chat.origin] * (len(kept.spans) < len(layout.spans))
    for start, end, _, turn in kept.spans:
        reasoning = str(chat.messages[turn].get("reasoning_content") or "").strip()
        if reasoning[:40] not in layout.text[start:end]:
            counts.no_reasoning.append(chat.origin)
    return kept


def _tokenized(laid: Iterator[tuple[int, Layout]], tokenizer: Any) -> Iterator[tuple[int, Layout, Ids, Chars, Chars]]:
    """Tokenise in large batches: (record's index, layout, ids, first characters, last characters) of each example.

    Where no example of a batch has spans, nobody asks for the characters: they are left out, which saves up to a third.
    """
    none = np.zeros(0, dtype=np.int64)
    while batch := list(islice(laid, _BATCH)):
        texts = [layout.text for _, layout in batch]
        if any(layout.spans for _, layout in batch):
            encoded = encode(texts, tokenizer)
        else:
            encoded = ((ids, none, none) for ids in encode_ids(texts, tokenizer))
        for (index, layout), (ids, starts, stops) in zip(batch, encoded, strict=True):
            yield index, layout, ids, starts, stops


def _mask(
    spans: list[tuple[int, int, bool, int]], starts: Chars, stops: Chars
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


def edges(tokenizer: Any) -> tuple[Ids, Ids]:
    """Return what stands before and after a plain text: bos, where the tokenizer itself would add one, and eos."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
    return np.array(first, np.int32), np.array([] if eos is None else [eos], np.int32)


def _windows(index: int, ids: Ids, max_length: int | None, records: Sequence[Record], counts: _Counts) -> list[Piece]:
    """Cut into windows; each begins with the last token of the one before as context: each token is scored once."""
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


def _examples(pieces: list[Piece], records: Sequence[Record]) -> Examples:
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(ids) for _, ids, _ in pieces], out=offsets[1:])
    return Examples(
        ids=np.concatenate([ids for _, ids, _ in pieces]),
        scored=np.concatenate([scored for _, _, scored in pieces]),
        offsets=offsets,
        record=np.array([index for index, _, _ in pieces], dtype=np.int64),
        origins=[record.origin for record in records],
    )


def where(origins: Sequence[Origin], most: int = 5) -> str:
    """Name the first few rows: "data.jsonl, rows 3, 8, 12 and 4 more"."""
    unique = list(dict.fromkeys(origins))
    same = [o for o in unique if o.file == unique[0].file][:most]
    rows = ", ".join(str(o.row) for o in same)
    more = f" and {len(unique) - len(same)} more" if len(unique) > len(same) else ""
    return f"{unique[0].file}, row{'s' * (len(unique) > 1)} {rows}{more}"


def check_answers(records: Sequence[Record], score: Score) -> None:
    """InputError where no record has an answer to train on: what render would say too, without tokenizer or template."""
    if records and score == "answers" and all(isinstance(r, Chat) and not any(r.trained[1:]) for r in records):
        raise _unanswered([r.origin for r in records])


def _unanswered(origins: Sequence[Origin]) -> InputError:
    return InputError(f"nothing would be scored: no row has an answer to train on ({where(origins)}).")


def _refuse(
    records: Sequence[Record], counts: _Counts, pieces: Sequence[Any], score: Score, max_length: int | None
) -> None:
    if not records:
        raise InputError("there are no rows to train on.")
    if not pieces:
        if counts.dropped:
            raise InputError(
                f"no answer is left within max_length {max_length}: every one begins beyond it "
                f"({where(counts.dropped)}); raise train.max_length."
            )
        if counts.no_tools:
            raise InputError(
                f"nothing would be scored: the answers are tool calls, which the model's chat template does not write "
                f"({where(counts.no_tools)})."
            )
        raise _unanswered(counts.unscored)
    if score == "answers" and counts.chats and not counts.closed:
        if counts.cut:
            raise InputError(
                f"no answer's end is left within max_length {max_length}: the model would never learn to stop "
                f"({where(counts.cut)}); raise train.max_length."
            )
        raise InputError(
            "the model's chat template ends no answer with a special token of its tokenizer, so the model would never "
            "learn to stop; use a template that ends answers with one, or add that token to the tokenizer."
        )


def _notices(counts: _Counts, max_length: int | None) -> list[str]:
    def say(origins: Sequence[Origin], one: str, many: str) -> list[str]:
        n = len(dict.fromkeys(origins))
        return [f"{n:,} {many if n > 1 else one} ({where(origins)})"] if n else []

    rest = "one example per answer: the chat template rewrites history"
    rewritten = "1 conversation makes " if counts.rewritten == 1 else f"{counts.rewritten:,} conversations make "
    nothing = "left out: nothing to score (no answer, an empty one, or none that is trained)"
    calls = "tool calls that the chat template does not write; those turns are not scored"
    reasoning = "reasoning that the chat template does not write"
    beyond = f"answer that begins beyond max_length {max_length} and is left out"
    windows = f"longer than max_length {max_length} and cut into windows"
    return [
        *([rewritten + rest] if counts.rewritten else []),
        *say(counts.unscored, f"row {nothing}", f"rows {nothing}"),
        *say(
            counts.leading,
            *(f"{w} with an answer to nothing, which is not scored" for w in ("row begins", "rows begin")),
        ),
        *say(counts.no_tools, f"row has {calls}", f"rows have {calls}"),
        *say(counts.no_reasoning, f"row has {reasoning}", f"rows have {reasoning}"),
        *say(counts.cut, f"row cut at max_length {max_length}", f"rows cut at max_length {max_length}"),
        *say(counts.dropped, f"row has an {beyond}", f"rows have an {beyond}"),
        *say(counts.windows, f"row is {windows}", f"rows are {windows}"),
    ]
