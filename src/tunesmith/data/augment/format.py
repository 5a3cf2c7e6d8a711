"""format: the same prompt laid out otherwise: lines joined or split, bullets changed, white space as copied from elsewhere."""

import re
from collections.abc import Callable, Collection

import numpy as np

WHOLE = True
_LISTED = re.compile(r"^([ \t]*)([-*•]|\d+[.)])([ \t]+)", re.MULTILINE)
_OTHER = {"-": "*", "*": "-", "•": "-"}
_LABEL = re.compile(r"[^\n:]{1,40}:(?:\s|\Z)")
_NO_INPUT = re.compile(r"\W*(?:no ?input|none|n/?a)\W*", re.IGNORECASE)
_FENCE = "```"


def vary(text: str, rng: np.random.Generator, keep: Collection[str] = ()) -> str:
    """Return the text laid out in one of the ways that change it; the text itself where none does, or where it holds code."""
    del keep  # no word is touched
    if _FENCE in text or re.search(r"^(?: {4}|\t)\S", text, re.MULTILINE):  # white space may mean something there
        return text
    made = [way(text) for way in WAYS]
    other = [t for t in made if t != text and t.strip()]
    return other[int(rng.integers(len(other)))] if other else text


def one_line(text: str) -> str:
    """Return the text with its lines joined, where each is a sentence; lists keep theirs."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    whole = all(line.endswith((".", "!", "?", ":")) for line in lines)
    return " ".join(lines) if whole and not _LISTED.search(text) else text


def input_below(text: str) -> str:
    """Return "Task: input" with the input on a line of its own, where a colon and a space part the two once."""
    head, colon, rest = text.partition(": ")
    return f"{head}:\n{rest}" if colon and "\n" not in text and ": " not in rest and len(rest) > 3 else text


def labelled(text: str) -> str:
    """Return instruction and input, parted by a blank line, with a label before an input that has none."""
    head, blank, rest = text.partition("\n\n")
    none = not blank or "\n\n" in rest or _LABEL.match(rest) or _NO_INPUT.fullmatch(rest.strip())
    return text if none else f"{head}\n\nInput:\n{rest}"


def bulleted(text: str) -> str:
    """Return the text with other bullets before its list, or 1) for 1.; numbers stay, for a prompt may speak of them."""
    return _LISTED.sub(lambda m: m[1] + _OTHER.get(m[2], m[2][:-1] + (")" if m[2][-1] == "." else ".")) + m[3], text)


def quoted(text: str) -> str:
    """Return instruction and input with the input between quotation marks, where it is one line that is a sentence."""
    head, blank, rest = text.partition("\n\n")
    sentence = re.fullmatch(r"[^\W\d_][^\n\"“”]*\s[^\n\"“”]*[.!?]", rest)
    return f'{head}\n\n"{rest}"' if blank and sentence and not _LABEL.match(rest) else text


WAYS: tuple[Callable[[str], str], ...] = (one_line, input_below, labelled, bulleted, quoted)
