"""From records to tokens: through the tokenizer's own chat template, with a mask of what is scored."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.data import coverage
from tunesmith.data.columns import Growing
from tunesmith.data.layout import Layout, chat_texts, encode_ids, encode_spans, end_tokens, lay_out, unwritten, written
from tunesmith.data.records import Chat, Examples, Record, Text
from tunesmith.data.tally import Counts, notices, refuse, unanswered, where
from tunesmith.errors import InputError

Score = Literal["answers", "all", "last"]
Ids = npt.NDArray[np.int32]
Ranges = list[tuple[int, int]]  # of tokens, first and after the last
_BATCH = 256  # records
ANSWERING = ("assistant", "tool")  # roles of the turns that an answer is made of


class _Part(NamedTuple):
    """A rendered example before tokenisation: its record's number, which of its conversations, and that, and its layout."""

    record: int
    answer: int
    source: Text | Chat
    layout: Layout


def render(
    records: Sequence[Record],
    tokenizer: Any,
    max_length: int | None = None,
    score: Score = "answers",
    folder: Path | None = None,
) -> tuple[Examples, list[str]]:
    """Return the records as token sequences, and notices for people.

    score "answers": of a Chat the trained answers are scored, each with its end-of-turn token; where the template
    rewrites history (some answer's rendering is no prefix of the whole) each answer is an example of its own. "all":
    every token is. "last": of a Chat up to its last answer, whole, as the template writes it, the last token alone, where a
    reward model reads it. A Text is bos (where the tokenizer adds one), text, eos, all scored. Other kinds are rendered as the
    conversations they hold (kinds.as_chats). The first token of an example never is scored. Longer than max_length: a
    Chat's end is cut off, and it is dropped if nothing scored is left, as under "last" it is; a Text, or anything under
    "all", is cut into windows that overlap by one token, so that each token is scored once.

    Records are taken a few hundred at a time, and many tokens are kept in temporary files of `folder`: a set may be
    larger than memory. InputError where nothing is scored, no answer's end is, or the vocabulary loses over 5% of the
    characters.
    """
    if not records:
        raise InputError("there are no rows to train on.")
    said = coverage.check(records, tokenizer)
    counts, out = Counts(), Growing(folder)
    bos, eos = edges(tokenizer)
    for part, ids, ranges in _tokenized(_ahead(_laid_out(records, tokenizer, score, counts)), tokenizer):
        if isinstance(part.source, Text) or score == "all":
            if isinstance(part.source, Text):
                ids = np.concatenate([bos, ids, eos])
            _add_windows(out, part, ids, max_length, counts)
        elif score == "last":
            _add_whole(out, part, ids, max_length, counts)
        else:
            _add_chat(out, part, ids, ranges, max_length, counts)
    refuse(counts, len(out.record), score, max_length)
    return out.finished(records), said + notices(counts, max_length)


def chats_of(record: Record) -> Sequence[Text | Chat]:
    """Return what is rendered of a record: itself, or the conversations that a preference, a verdict or a prompt holds."""
    if isinstance(record, Text | Chat):
        return [record]
    from tunesmith.data.kinds import as_chats

    return as_chats(record)


def _laid_out(records: Sequence[Record], tokenizer: Any, score: Score, counts: Counts) -> Iterator[list[_Part]]:
    """Yield the rendered examples, those of a few hundred records at a time."""
    ends = end_tokens(tokenizer)
    numbered = enumerate(records)
    while some := list(islice(numbered, _BATCH)):
        batch = [(i, k, part) for i, record in some for k, part in enumerate(chats_of(record))]
        if score == "last":
            batch = [(i, k, _until_answer(part)) for i, k, part in batch]
        chats = [part for *_, part in batch if isinstance(part, Chat)]
        whole = chat_texts(chats, tokenizer) if score != "answers" else iter(())
        found = lay_out(chats, tokenizer, ends) if score == "answers" else iter(())
        out = []
        for index, number, part in batch:
            if isinstance(part, Text):
                layouts = [Layout(part.text, [])] if part.text.strip() else []
            elif score != "answers":
                layouts = [Layout(next(whole), [])]
                layouts = layouts if score == "all" or part.messages[-1]["role"] in ANSWERING else []
            else:
                layouts = _answers(part, next(found), counts)
            if not layouts:
                counts.unscored.add(part.origin)
            out += [_Part(index, number, part, layout) for layout in layouts]
        yield out


def _until_answer(part: Text | Chat) -> Text | Chat:
    """Return a conversation without what follows its last answer; one without an answer as it is."""
    if isinstance(part, Text):
        return part
    ends = [i for i, m in enumerate(part.messages, 1) if i > 1 and m["role"] in ANSWERING]
    return replace(part, messages=part.messages[: ends[-1]], trained=part.trained[: ends[-1]]) if ends else part


def _answers(chat: Chat, layouts: list[Layout], counts: Counts) -> list[Layout]:
    """Return the examples of a Chat without the turns that the template does not write, and count what happened."""
    counts.rewritten += len(layouts) > 1
    if chat.trained[:1] == [True]:
        counts.leading.add(chat.origin)
    kept = []
    for layout in layouts:
        kept.append(written(chat, layout))
        for span in layout.spans:
            missing = unwritten(chat, layout, span)
            if missing:
                (counts.no_tools if missing == "calls" else counts.no_text).add(chat.origin)
        for start, end, _, turn in kept[-1].spans:
            reasoning = str(chat.messages[turn].get("reasoning_content") or "").strip()
            if reasoning[:40] not in layout.text[start:end]:
                counts.no_reasoning.add(chat.origin)
    return [layout for layout in kept if layout.spans]


def _ahead(batches: Iterator[list[_Part]]) -> Iterator[list[_Part]]:
    """Yield the batches; the next one is made in a thread while this one is used: templates run in another process."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _tokenized(batches: Iterator[list[_Part]], tokenizer: Any) -> Iterator[tuple[_Part, Ids, Ranges]]:
    """Yield (part, ids, the ranges of its spans' tokens) of each example.

    Where no example of a batch has spans, nobody asks for the characters: they are left out, which saves up to a third.
    """
    for batch in batches:
        texts = [part.layout.text for part in batch]
        if any(part.layout.spans for part in batch):
            encoded = encode_spans(texts, [part.layout.spans for part in batch], tokenizer)
        else:
            encoded = ((ids, []) for ids in encode_ids(texts, tokenizer))
        for part, (ids, ranges) in zip(batch, encoded, strict=True):
            yield part, ids, ranges


def _add_chat(
    out: Growing,
    part: _Part,
    ids: Ids,
    ranges: Ranges,
    max_length: int | None,
    counts: Counts,
) -> None:
    mask = np.zeros(len(ids), dtype=np.bool_)
    for first, behind in ranges:
        mask[first:behind] = True
    mask[:1] = False
    limit = max_length or len(ids)
    if not mask[:limit].any():
        (counts.dropped if mask.any() else counts.unscored).add(part.source.origin)
        return
    if len(ids) > limit:
        counts.cut.add(part.source.origin)
    counts.chats += 1
    spans = zip(part.layout.spans, ranges, strict=True)
    counts.closed += any(span[2] and 0 < behind <= limit for span, (_, behind) in spans)
    out.add(part.record, part.answer, ids[:limit], mask[:limit])


def edges(tokenizer: Any) -> tuple[Ids, Ids]:
    """Return what stands before and after a plain text: bos, where the tokenizer itself would add one, and eos."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
    return np.array(first, np.int32), np.array([] if eos is None else [eos], np.int32)


def windows(length: int, max_length: int | None) -> list[tuple[int, int]]:
    """Return (start, end) of each window; each begins with the last token of the one before: each token is scored once."""
    most = max_length or length
    return [(i, min(i + max(most, 2), length)) for i in range(0, length - 1, max(most - 1, 1))]


def _add_windows(out: Growing, part: _Part, ids: Ids, max_length: int | None, counts: Counts) -> None:
    cuts = windows(len(ids), max_length)
    if not cuts:
        counts.unscored.add(part.source.origin)
    if len(cuts) > 1:
        counts.windows.add(part.source.origin)
    for start, end in cuts:
        mask = np.ones(end - start, dtype=np.bool_)
        mask[0] = False
        out.add(part.record, part.answer, ids[start:end], mask)


def _add_whole(out: Growing, part: _Part, ids: Ids, max_length: int | None, counts: Counts) -> None:
    if len(ids) < 2:
        counts.unscored.add(part.source.origin)
    elif max_length and len(ids) > max_length:
        counts.long.add(part.source.origin)
    else:
        mask = np.zeros(len(ids), dtype=np.bool_)
        mask[-1] = True
        out.add(part.record, part.answer, ids, mask)


def check_answers(records: Sequence[Record], score: Score) -> None:
    """InputError where no record has an answer to train on: what render would say too, without tokenizer or template."""
    if records and score == "answers" and all(isinstance(r, Chat) and not any(r.trained[1:]) for r in records):
        raise unanswered(where(r.origin for r in records))
