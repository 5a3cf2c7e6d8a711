"""case: the prompt in other letters or without its marks, as people type: lower, UPPER, Title, no end mark, no commas."""

import re
from collections.abc import Collection
from typing import Literal

import numpy as np

from tunesmith.data.augment._words import open_places, pieces

WHOLE = False
Style = Literal["lower", "upper", "title", "no_end_mark", "no_punctuation"]
STYLES: tuple[Style, ...] = ("lower", "upper", "title", "no_end_mark", "no_punctuation")
_OF_LETTERS = re.compile(r"capital|(?:upper|lower|title|camel|snake|letter)[ -]?case|punctuat", re.IGNORECASE)


def vary(text: str, rng: np.random.Generator, keep: Collection[str] = (), *, styles: list[Style] | None = None) -> str:
    """Return the text in one of the styles (default: all); as it is where it is about letters' case or punctuation.

    Code, quotations, figures and names stay. no_punctuation: without the mark at the end and without a comma that stands alone
    (several may part a list's items).
    """
    del keep  # the words themselves stay: an answer that takes them up still fits
    chosen = (styles or STYLES)[int(rng.integers(len(styles or STYLES)))]
    if _OF_LETTERS.search(text):
        return text
    if chosen in ("no_end_mark", "no_punctuation"):
        said = text.rstrip().rstrip(".!?")
        return said.replace(", ", " ") if chosen == "no_punctuation" and _loose_comma(said) else said
    cut = pieces(text)
    touch = set(open_places(text, cut, ()))
    change = {"lower": str.lower, "upper": str.upper, "title": _capital}[chosen]
    return "".join(change(piece) if i in touch else piece for i, piece in enumerate(cut))


def _loose_comma(text: str) -> bool:
    return text.count(",") == 1 and not re.search(r'["“`]', text)


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
