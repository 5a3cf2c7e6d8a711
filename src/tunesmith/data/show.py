"""`tunesmith data show`: the tokens of the first rows in colour: scored or not, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.layout import Layout, encode, end_tokens, lay_out, written
from tunesmith.data.records import Chat, Record, Text
from tunesmith.data.render import edges
from tunesmith.data.sources import load

_STYLES = {
    "scored": "black on green",
    "end": "black on yellow",
    "context": "cyan",
    "template": "bright_black",
    "off": "magenta",
}

_FIRST = "first token: nothing before it to predict it from"


@dataclass(frozen=True, slots=True)
class Token:
    """One token as shown: its text, whether it is scored, and why."""

    text: str
    scored: bool
    reason: str


def show(source: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str, model: str, n: int, console: Any) -> None:
    """Print the first `n` records of `source` as `model`'s tokenizer and template make them, on a rich console."""
    from rich.text import Text as Line

    from tunesmith.model.loading import load_tokenizer, resolve

    loaded = load(source)
    tokenizer, notices = load_tokenizer(resolve(model))
    for notice in [*loaded.notices, *notices]:
        console.print(notice, style="bright_black", markup=False)
    for record in loaded.records[:n]:
        for tokens in explain(record, tokenizer):
            scored = sum(t.scored for t in tokens)
            console.print(f"\n{record.origin}: {len(tokens)} tokens, {scored} scored", style="bold", markup=False)
            line = Line()
            for token in tokens:
                line.append(_visible(token.text), _style(token))
            console.print(line)
            for reason in dict.fromkeys(t.reason for t in tokens):
                count = sum(t.reason == reason for t in tokens)
                example = next(t for t in tokens if t.reason == reason)
                console.print(Line(f"  {count:4d}  ").append(f" {reason} ", _style(example)))


def explain(record: Record, tokenizer: Any) -> list[list[Token]]:
    """Return, for each example a record makes, its tokens with what is scored and why."""
    if isinstance(record, Text):
        ((ids, _, _),) = encode([record.text], tokenizer)
        bos, eos = edges(tokenizer)
        pieces = [tokenizer.decode([i]) for i in (*bos.tolist(), *ids.tolist(), *eos.tolist())]
        return [[Token(piece, i > 0, "text: scored" if i else _FIRST) for i, piece in enumerate(pieces)]]
    layouts = [written(record, layout) for layout in lay_out(record, tokenizer, end_tokens(tokenizer))]
    out = []
    for layout in layouts:
        ((ids, starts, stops),) = encode([layout.text], tokenizer)
        turns = _turns(record, layout.text)
        tokens = []
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            scored, reason = _reason(record, layout, turns, start, stop, i == 0)
            piece = tokenizer.decode([int(ids[i])])
            if layout.text[start] == " " and not piece.startswith(" "):
                piece = " " + piece  # some tokenizers drop a first space when they decode a token alone
            tokens.append(Token(piece, scored, reason))
        _mark_ends(tokens, layout, starts.tolist(), stops.tolist())
        out.append(tokens)
    return out


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


def _reason(
    record: Chat, layout: Layout, turns: list[tuple[int, int, int]], start: int, stop: int, first: bool
) -> tuple[bool, str]:
    if not first and any(start < end and stop > begin for begin, end, _, _ in layout.spans):
        return True, "answer: scored"
    for begin, end, index in turns:
        if start < end and stop > begin:
            message = record.messages[index]
            if message["role"] != "assistant":
                return False, f"{message['role']} turn: context"
            return False, "earlier answer: context" if record.trained[index] else "answer not trained (train: false)"
    return False, "template: context"


def _mark_ends(tokens: list[Token], layout: Layout, starts: list[int], stops: list[int]) -> None:
    for begin, end, closed, _ in layout.spans:
        inside = [i for i in range(len(tokens)) if starts[i] < end and stops[i] > begin]
        if closed and inside:
            tokens[inside[-1]] = Token(tokens[inside[-1]].text, True, "end of turn: scored")


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n")


def _style(token: Token) -> str:
    if token.scored:
        return _STYLES["end" if token.reason.startswith("end") else "scored"]
    if "train" in token.reason:
        return _STYLES["off"]
    return _STYLES["template" if token.reason.startswith(("template", "first")) else "context"]
