"""`tunesmith data show`: rows as the model will see them: tokens scored or not, what is cut, and which rows run together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tunesmith.data.explain import Piece, Token, explain, pieces
from tunesmith.data.records import Examples, Record
from tunesmith.errors import InputError

__all__ = ["Token", "explain", "show"]

MICROBATCH = 4096  # tokens; a run fits train.microbatch_tokens to its memory
_LONGEST = 8192  # what a run takes for max_length where the model could read more
_STYLES = {  # two shades each, which tokens take in turn
    "scored": ("black on green", "black on bright_green"),
    "end": ("bold black on yellow", "bold black on bright_yellow"),
    "special": ("bold blue", "bold bright_blue"),
    "context": ("cyan", "bright_cyan"),
    "template": ("bright_black", "white"),
    "off": ("magenta", "bright_magenta"),
    "cut": ("red strike", "bright_red strike"),
}
_HIDDEN = {c: f"\\x{c:02x}" for c in (*range(9), *range(11, 32), *range(127, 160))} | {
    c: f"\\u{c:04x}"
    for c in (0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2028, 0x2029, 0x2060, *range(0x2066, 0x206A), 0xFEFF)
}


class Batch(NamedTuple):
    """A micro-batch: its pieces' numbers in order, how many of its tokens each begins with that run once for several, all tokens."""

    pieces: list[int]
    shared: list[int]
    tokens: int


@dataclass(frozen=True, slots=True)
class View:
    """What is shown: the pieces of the rows, the micro-batches they make, and what was found on the way."""

    model: str
    max_length: int | None
    pieces: list[Piece]
    batches: list[Batch]
    notices: list[str]


def show(
    source: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str,
    model: str,
    n: int,
    console: Any,
    row: int = 1,
    max_length: int | None = None,
    html: str | None = None,
) -> None:
    """Print `n` records of `source` from the row-th on as `model`'s tokenizer and template make them, on a rich console.

    max_length: where a run would cut; default: the model's context, at most 8192. html: a file to write the same to as a page.
    """
    made = view(source, model, n, row, max_length)
    if html is not None:
        from tunesmith.data.show_html import page

        try:
            Path(html).write_text(page(made), encoding="utf-8", errors="backslashreplace")
        except OSError as e:
            raise InputError(f"{html} cannot be written ({e.strerror}); give another file for --html.") from e
        console.print(f"{html}: {_rows(made)}", markup=False, highlight=False, soft_wrap=True)
        return
    print_view(made, console)


def view(source: Any, model: str, n: int, row: int = 1, max_length: int | None = None) -> View:
    """Return what is shown of the records row .. row + n - 1 of the source (counted from 1); InputError where there are fewer."""
    from tunesmith.data.checks.tokens import source_of
    from tunesmith.model.loading import load_tokenizer

    told: list[str] = []
    count, chosen = 0, []
    for record in islice(_records(source, told), row - 1 + n):
        count += 1
        if count >= row:
            chosen.append(record)
    if not chosen:
        raise InputError(f"--row {row} is beyond the last: there are {count:,} rows; give a smaller number.")
    found = source_of(model)
    tokenizer, notices = load_tokenizer(found)
    limit = max_length or _limit(found)
    shown = [p for record in chosen for p in pieces(record, tokenizer, limit)]
    return View(model, limit, shown, pack(shown), [*told, *notices])


def _records(source: Any, told: list[str]) -> Iterator[Record]:
    """Yield the records of a source one by one, for it may be large; what each file is read as is added to `told`."""
    from tunesmith.data import detect, files
    from tunesmith.data.converting import Converter, begun
    from tunesmith.data.load_file import load_file
    from tunesmith.data.sources import parse, places

    for entry in parse(source):
        found, notices = places(entry)
        told += notices
        for place in found:
            name, why, items = begun(files.cut_rows(place, files.reader(place)), entry, str(place))
            told.append(f"{place}: rows of the format {name} ({why})")
            if hasattr(detect.all_formats()[name], "join"):  # whose rows belong together
                yield from load_file(place, entry, 0, False, None)[1]
                continue
            make = Converter(entry, str(place), name)
            for item in items:
                if isinstance(item, InputError):
                    raise item
                yield from make(item[0], item[1])


def _limit(source: Any) -> int | None:
    from tunesmith.model.loading import load_config

    try:
        context = getattr(load_config(source).get_text_config(), "max_position_embeddings", None)
    except InputError:  # a folder with a tokenizer alone is enough to look at rows
        context = None
    return min(context or _LONGEST, _LONGEST)


def pack(shown: Sequence[Piece], capacity: int = MICROBATCH) -> list[Batch]:
    """Return the micro-batches that a step over these pieces makes, as training packs them; those left out are in none."""
    from tunesmith.training.arrange import arrange

    kept = np.array([i for i, p in enumerate(shown) if p.kept], dtype=np.int64)
    if not len(kept):
        return []
    lengths = [p.kept for p in shown]
    scored = [t.scored for p in shown for t in p.tokens[: p.kept]]
    examples = Examples(
        np.concatenate([p.ids[: p.kept] for p in shown]),
        np.array(scored, dtype=np.bool_),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.arange(len(shown)),
        [p.origin for p in shown],
    )
    out = []
    for whole, clusters in arrange(examples, kept, capacity, link=True):
        members = [(i, 0) for i in whole.tolist()] + [(i, c.shared) for c in clusters for i in c.rows.tolist()]
        tokens = sum(lengths[i] - shared for i, shared in members) + sum(c.shared for c in clusters)
        out.append(Batch([i for i, _ in members], [shared for _, shared in members], tokens))
    return out


def kind(token: Token, cut: bool = False) -> str:
    """Return how a token is shown: scored, end, special, context, template, off (an answer that is not trained) or cut."""
    if cut:
        return "cut"
    if token.scored:
        return "end" if token.reason.startswith("end") else "scored"
    if "train: false" in token.reason:
        return "off"
    if token.special:
        return "special"
    return "template" if token.reason.startswith(("template", "first")) else "context"


def visible(text: str) -> str:
    """Return the text with line breaks marked, and what would steer a terminal or turn the writing written out."""
    return text.translate(_HIDDEN).replace("\n", "⏎\n").replace("\t", "⇥\t")


def title(piece: Piece) -> str:
    """Return a piece's heading: "a.jsonl, row 3 (chosen): 71 tokens, 5 scored", or "..., left out"."""
    label = f" ({piece.label})" if piece.label else ""
    said = f"{sum(t.scored for t in piece.tokens[: piece.kept]):,} scored" if piece.kept else "left out"
    return f"{piece.origin}{label}: {piece.kept or len(piece.tokens):,} tokens, {said}"


def print_view(made: View, console: Any) -> None:
    """Print a view on a rich console; where there is no colour, brackets say what is scored and what is cut."""
    for notice in made.notices:
        console.print(notice, style="bright_black", markup=False, highlight=False)
    plain = console.no_color or not console.is_terminal
    if plain:
        console.print("scored: ⟦ ⟧   cut off: ⟪ ⟫", markup=False, highlight=False)
    for piece in made.pieces:
        console.print(f"\n{title(piece)}", style="bold", markup=False, highlight=False)
        if piece.note:
            console.print(
                f"  {piece.note}", style="red" if "lost" in piece.note else "yellow", markup=False, highlight=False
            )
        console.print(_line(piece, plain), highlight=False)
        _print_reasons(piece, console)
    _print_batches(made, console)


def _line(piece: Piece, plain: bool) -> Any:
    from rich.text import Text as Line

    line, open_ = Line(), ""
    brackets = {"scored": "⟦⟧", "end": "⟦⟧", "cut": "⟪⟫"}
    for i, token in enumerate(piece.tokens):
        how = kind(token, cut=i >= piece.kept)
        pair = brackets.get(how, "") if plain else ""
        if pair != open_:
            line.append(open_[1:] + pair[:1])
            open_ = pair
        line.append(visible(token.text), _STYLES[how][i % 2])
    return line.append(open_[1:])


def reasons(piece: Piece) -> list[tuple[int, str, str]]:
    """Return (tokens, why, how they are shown) of each reason that a piece's tokens have, in order."""
    counts: dict[tuple[str, str], int] = {}
    for i, token in enumerate(piece.tokens):
        cut = i >= piece.kept
        why, how = token.reason, kind(token, cut)
        if cut:
            why = "cut off: the model never sees it" if piece.kept else "left out with its row"
        if how == "special":
            why += " (special token)"
        counts[why, how] = counts.get((why, how), 0) + 1
    return [(count, why, how) for (why, how), count in counts.items()]


def _print_reasons(piece: Piece, console: Any) -> None:
    from rich.text import Text as Line

    for count, why, how in reasons(piece):
        console.print(Line(f"  {count:4d}  ").append(f" {why} ", _STYLES[how][0]), highlight=False)


def _print_batches(made: View, console: Any) -> None:
    if not made.batches:
        return
    console.print(f"\n{packing()}", style="bold", markup=False, highlight=False)
    for number, batch in enumerate(made.batches, 1):
        parts = " | ".join(
            name_in_batch(made.pieces[i], shared) for i, shared in zip(batch.pieces, batch.shared, strict=True)
        )
        console.print(f"  micro-batch {number}, {batch.tokens:,} tokens: | {parts} |", markup=False, highlight=False)


def packing() -> str:
    """Return what the micro-batches are, in a sentence."""
    return (
        f"Packed without padding into micro-batches of at most {MICROBATCH:,} tokens (a run fits them to its memory); "
        "no row sees another's tokens."
    )


def name_in_batch(piece: Piece, shared: int) -> str:
    """Return "row 3 chosen 71", with the tokens it shares with its neighbours where it has such."""
    label = f" {piece.label.split(',')[0].split(':')[0]}" if piece.label else ""
    return f"row {piece.origin.row}{label} {piece.kept:,}" + (f" (first {shared:,} shared)" if shared else "")


def _rows(made: View) -> str:
    n = len({piece.origin for piece in made.pieces})
    return f"{n} row{'s' * (n != 1)} written"
