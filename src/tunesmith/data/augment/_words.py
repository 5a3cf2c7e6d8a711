"""A text cut into words and what stands between them; which words may be touched."""

import re
from collections.abc import Collection

_PIECE = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\s+|[\w]+|.", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# What must stay as it is: code, placeholders, quotations, addresses, anything with digits.
_FIXED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\{\{.*?\}\}|\{[^{}\n]*\}|<[^<>\n]+>|\"[^\"\n]*\"|“[^”\n]*”|\[[^\[\]\n]*\]|\b\w+://\S+|\S+@\S+|\S*\d\S*",
    re.DOTALL,
)

_LINK_BEFORE = re.compile(r"[-–/\\_@#&+*^=~|$%]\Z|\w\.\Z")
_LINK_AFTER = re.compile(r"[-–/\\_@#&+*^=~|$%]|\.\w")


def pieces(text: str) -> list[str]:
    """Return the text cut into words, white space and single marks; joined they are the text."""
    return _PIECE.findall(text)


def words(text: str) -> set[str]:
    """Return the words of a text in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def open_places(text: str, cut: list[str], keep: Collection[str]) -> list[int]:
    """Return the indices of the pieces that are words and may be touched.

    Not those inside code, quotations, placeholders and addresses, nor parts of a compound (well-known, and/or, file.txt), nor
    names (capitals inside a sentence), nor words in `keep` (lower case): what an answer takes up from the prompt must stay
    there, or the answer would no longer fit.
    """
    fixed = [match.span() for match in _FIXED.finditer(text)]
    found, at, first = [], 0, True
    for index, piece in enumerate(cut):
        start, at = at, at + len(piece)
        if _WORD.fullmatch(piece):
            inside = any(a < at and start < b for a, b in fixed)
            name = piece[0].isupper() and not first
            if not inside and not name and piece.lower() not in keep and not _joined(text, start, at):
                found.append(index)
            first = False
        elif piece in ".!?:\n" or "\n" in piece:
            first = True
    return found


def asked_part(text: str) -> int:
    """Return where the wish ends and the material it is about begins: at a blank line, or after a colon; the length without any."""
    found = re.search(r"\n\s*\n|:(?=\s)", text)
    return len(text) if found is None else found.start()


def _joined(text: str, start: int, end: int) -> bool:
    """Say whether a word hangs together with another: a mark of a compound beside it, or a point between letters."""
    return bool(_LINK_BEFORE.search(text, max(start - 2, 0), start) or _LINK_AFTER.match(text, end))


def like(word: str, model: str) -> str:
    """Return the word with the capitals of `model`: all, the first, or none."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
