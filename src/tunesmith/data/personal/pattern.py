"""What a pattern of personal data is: where it is worth looking, what it looks like, and what proves it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]
Check = Callable[[re.Match[str]], Span | None]


def whole(match: re.Match[str]) -> Span:
    """Return the span of the group "value", of the whole match where there is none."""
    return match.span("value") if "value" in match.re.groupindex else match.span()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A kind of personal data: `check` returns the span found in a match of `regex`, None for a near miss.

    What makes the search cheap, for most texts hold none of it: `gate` names what a text with a match always has (see
    `find`), `words` are lower-case words and `needs` lower-case strings, of either of which it has at least one. A regex begins
    with the first character itself, and looks behind it afterwards: re then skips to such a character.
    """

    kind: str
    regex: re.Pattern[str]
    check: Check = whole
    gate: str = ""
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def digits(text: str) -> str:
    """Return the ASCII digits of a text."""
    return "".join(c for c in text if "0" <= c <= "9")


def before(match: re.Match[str], words: re.Pattern[str], reach: int = 40) -> bool:
    """Say whether `words` (a pattern that ends in $) stands before a match, at most `reach` characters back."""
    start = whole(match)[0]
    return words.search(match.string, max(0, start - reach), start) is not None


def in_a_row(match: re.Match[str]) -> bool:
    """Say whether a match whose groups are parted by spaces follows another number and a space: a list of numbers."""
    at = match.start()
    return " " in match[0] and at > 1 and match.string[at - 1] == " " and match.string[at - 2].isdigit()


# What numbers are called that look like personal ones and are not.
NOT_PERSONAL = re.compile(
    r"\b(?:order|invoice|tracking|ticket|isbn|issn|sku|item|part|serial|batch|lot|model|ref(?:erence)?|version|commit|"
    r"case|product|article|bestellung|rechnung|pedido|factura|commande|facture|doi|upc|ean|build|revision|"
    r"transaction|shipment|booking|asin|pmid|arxiv)\b[\w ]{0,12}\W{0,4}$",
    re.IGNORECASE,
)
