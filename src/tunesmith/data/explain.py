"""The tokens of a record as the model will see them: each with its text, whether it is scored, and why."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.layout import Layout, Span, encode, end_tokens, lay_out, unwritten, written
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Record, Text, Verdict
from tunesmith.data.render import chats_of, edges, windows

_FIRST = "first token: nothing before it to predict it from"
_INSIDE = "▫"  # a token that ends inside a character, whose bytes are several tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One token as shown: its text, whether it is scored, why, and whether it is one of the tokenizer's special tokens."""

    text: str
    scored: bool
    reason: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """An example as training takes it: the first `kept` of its tokens; none where nothing in them is scored.

    label: which part of its record it is. ids (T,) and tokens are of the whole; note says what was done with it.
    """

    origin: Origin
    label: str
    tokens: list[Token]
    ids: npt.NDArray[np.int32] = field(repr=False)
    kept: int
    note: str = ""


def pieces(record: Record, tokenizer: Any, max_length: int | None = None) -> list[Piece]:
    """Return the examples that a record of any kind makes, cut at max_length, in the order of rendering."""
    out: list[Piece] = []
    for part, label in zip(chats_of(record), _labels(record), strict=True):
        if isinstance(part, Text):
            out += _windows(part, tokenizer, max_length)
            continue
        found = list(_examples(part, tokenizer))
        for i, (ids, tokens, what) in enumerate(found):
            many = f"answer {i + 1} of {len(found)}: the template rewrites history" if len(found) > 1 else ""
            out.append(
                _cut(
                    Piece(part.origin, ", ".join(filter(None, (label, many))), tokens, ids, len(ids), what), max_length
                )
            )
        if not found:
            out.append(_untrained(part, label, tokenizer))
    return out


def explain(record: Record, tokenizer: Any) -> list[list[Token]]:
    """Return, for each example a record makes, its tokens with what is scored and why."""
    return [piece.tokens for piece in pieces(record, tokenizer) if piece.kept]


def _labels(record: Record) -> list[str]:
    match record:
        case Preference():
            last = len(record.answers) - 1
            names = ["chosen", *(f"answer {i + 1} of {last + 1}" for i in range(1, last)), "rejected"]
            scores = record.scores or []
            return [f"{name}, score {s:g}" for name, s in zip(names, scores, strict=True)] if scores else names
        case Verdict():
            return ["good answer" if record.good else "bad answer"]
        case Prompt():
            return ["prompt" if record.reference is None else "prompt with its reference"]
    return [""]


def _windows(record: Text, tokenizer: Any, max_length: int | None) -> Iterator[Piece]:
    ((body, starts, stops),) = encode([record.text], tokenizer)
    bos, eos = edges(tokenizer)
    ids = np.concatenate([bos, body, eos])
    texts = [
        *(tokenizer.decode([i]) for i in bos.tolist()),
        *_texts(record.text, body, starts, stops, tokenizer),
        *(tokenizer.decode([i]) for i in eos.tolist()),
    ]
    special = _special(ids, tokenizer)
    cuts = windows(len(ids), max_length)
    for n, (start, end) in enumerate(cuts, 1):
        repeats = "context: the last token of the window before"
        reasons = [repeats if n > 1 else _FIRST, *["text: scored"] * (end - start - 1)]
        tokens = [
            Token(texts[i], i > start, reason, special[i]) for i, reason in zip(range(start, end), reasons, strict=True)
        ]
        label = f"window {n} of {len(cuts)}, cut at max_length {max_length}" if len(cuts) > 1 else ""
        yield Piece(record.origin, label, tokens, ids[start:end], end - start)
    if not cuts:
        tokens = [Token(t, False, "left out: nothing to score") for t in texts]
        yield Piece(record.origin, "", tokens, ids, 0, "left out: nothing to score")


def _examples(chat: Chat, tokenizer: Any) -> Iterator[tuple[npt.NDArray[np.int32], list[Token], str]]:
    """Yield (ids, tokens, note) of each example of a conversation in which something is scored."""
    (layouts,) = lay_out([chat], tokenizer, end_tokens(tokenizer))
    for layout in layouts:
        kept = written(chat, layout)
        lost = {"calls": "tool calls", "text": "an answer"}
        notes = [lost[what] for span in layout.spans if (what := unwritten(chat, layout, span))]
        if kept.spans:
            note = f"the template does not write {notes[0]}: not scored" if notes else ""
            ids, tokens = _told(chat, kept, tokenizer)
            yield ids, tokens, note


def _untrained(chat: Chat, label: str, tokenizer: Any) -> Piece:
    """Return a conversation of which nothing is scored: the turns of a prompt, or of a row that is left out."""
    from tunesmith.data.layout import chat_text

    asks = chat.messages[-1:] != [] and chat.messages[-1]["role"] != "assistant"
    text = chat_text(chat.messages, chat.tools, tokenizer, chat.origin, prompt=asks)
    ids, tokens = _told(chat, Layout(text, []), tokenizer)
    if label == "prompt":
        return Piece(chat.origin, label, tokens, ids, len(ids), "the model answers it itself")
    return Piece(chat.origin, label, tokens, ids, 0, "left out: nothing to score")


def _told(chat: Chat, layout: Layout, tokenizer: Any) -> tuple[npt.NDArray[np.int32], list[Token]]:
    ((ids, starts, stops),) = encode([layout.text], tokenizer)
    mask, last = scored(layout.spans, starts, stops)
    turns = _turns(chat, layout.text)
    texts, special = _texts(layout.text, ids, starts, stops, tokenizer), _special(ids, tokenizer)
    tokens = []
    for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        reason = "answer: scored" if mask[i] else _reason(chat, turns, start, stop)
        tokens.append(Token(texts[i], bool(mask[i]), reason, special[i]))
    for span, at in zip(layout.spans, last, strict=True):
        if span[2] and at < len(tokens):
            tokens[at] = replace(tokens[at], reason="end of turn: scored")
    return ids, tokens


def scored(
    spans: list[Span], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Return (scored (T,), the index of each span's last token, T where it has none): a token that overlaps a span is scored."""
    mask = np.zeros(len(starts), dtype=np.bool_)
    last = []
    for start, end, _, _ in spans:
        inside = (starts < end) & (stops > start)
        mask |= inside
        last.append(int(np.flatnonzero(inside)[-1]) if inside.any() else len(starts))
    mask[:1] = False
    return mask, last


def _texts(
    text: str, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], tokenizer: Any
) -> list[str]:
    """Return each token's own part of the text; what the vocabulary lacks as the token that stands for it."""
    out, owned = [], 0
    for token, start, stop in zip(ids.tolist(), starts.tolist(), stops.tolist(), strict=True):
        if token == tokenizer.unk_token_id:
            out.append(str(tokenizer.unk_token))
        else:
            out.append(text[max(start, owned) : stop] or (_INSIDE if stop else ""))
        owned = max(owned, stop)
    return out


def _special(ids: npt.NDArray[np.int32], tokenizer: Any) -> list[bool]:
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | set(tokenizer.all_special_ids)
    return [i in special for i in ids.tolist()]


def _turns(chat: Chat, text: str) -> list[tuple[int, int, int]]:
    """Return where each turn's content stands in the text: (start, end, index)."""
    found, at = [], 0
    for index, message in enumerate(chat.messages):
        said = str(message["content"]).strip()
        place = text.find(said, at) if said else -1
        if place >= 0:
            at = place + len(said)
            found.append((place, at, index))
    return found


def _reason(chat: Chat, turns: list[tuple[int, int, int]], start: int, stop: int) -> str:
    for begin, end, index in turns:
        if start < end and stop > begin:
            role = chat.messages[index]["role"]
            if role != "assistant":
                return f"{role} turn: context"
            return "earlier answer: context" if chat.trained[index] else "answer not trained (train: false)"
    return "template: context"


def _cut(piece: Piece, max_length: int | None) -> Piece:
    """Return the piece as max_length leaves it."""
    if not max_length or len(piece.tokens) <= max_length:
        return piece
    lost = sum(t.scored for t in piece.tokens[max_length:])
    if not any(t.scored for t in piece.tokens[:max_length]):
        return replace(piece, kept=0, note=f"left out: its answer begins beyond max_length {max_length}")
    note = f"cut at max_length {max_length}: {len(piece.tokens) - max_length} tokens lost, {lost} of them scored"
    return replace(piece, kept=max_length, note=note)
