"""What checks find: problems with file, row, field, sample and remedy, a bounded list of each kind and its full count."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data import personal
from tunesmith.data.checks.kinds import kind as known
from tunesmith.data.records import Record

MOST = 1000
"""Problems of one kind listed of one file; of the others only the number is kept."""
Problem = dict[str, Any]
MASK = "•••"
# What may be a piece of an address, a key or a number of somebody, cut in two by an excerpt.
_PIECE = re.compile(r"\S+@\S*|@[\w-]+\.\S+|(?=[\w+/-]*\d)(?=[\w+/-]*[A-Za-z])[\w+/-]{16,}|\d[\d ().-]{6,}\d")
_NUMBER = " 0123456789()+-./"
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


@dataclass(slots=True)
class Item:
    """One record as the checks see it: its row, all it says, the text before the first answer, and its answers."""

    number: int
    row: dict[str, Any]
    record: Record
    text: str
    prompt: str
    answers: list[str]


@dataclass
class Found:
    """The problems of one file."""

    most: int = MOST
    listed: dict[str, list[Problem]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, row: int | None, field: str | None, message: str, sample: str | None = None) -> None:
        """Note one problem; the row is None where the whole file is meant."""
        if any(p["row"] == row and p["field"] == field and p["message"] == message for p in self.listed[kind][-3:]):
            return  # the records of one tree share their turns
        self.counts[kind] += 1
        if len(self.listed[kind]) < self.most:
            about = known(kind)
            sample = sample and masked(sample)
            problem = {"row": row, "field": field, "kind": kind, "severity": about.severity}
            self.listed[kind].append({**problem, "message": visible(message), "sample": sample, "remedy": about.remedy})

    def at(self, kind: str, item: Item, message: str, text: str, start: int = 0, end: int | None = None) -> None:
        """Note a problem with a piece of a record's text; the field is the one of the row that holds it."""
        if len(self.listed[kind]) >= self.most:
            self.counts[kind] += 1
            return
        piece = text[start:end]
        field, whole = _held(item.row, text, piece)
        if whole is not None and text != whole and piece in whole:  # the field's own text, not the turns joined
            text, start = whole, whole.find(piece)
        self.add(kind, item.number, field, message, excerpt(text, start, start + len(piece)))

    def problems(self) -> list[Problem]:
        """Return the listed problems, those of the whole file first, then by row."""
        return sorted((p for ps in self.listed.values() for p in ps), key=lambda p: p["row"] or 0)

    def more(self) -> dict[str, int]:
        """Return how many problems of each kind are not listed."""
        return {k: n - len(self.listed[k]) for k, n in self.counts.items() if n > len(self.listed[k])}


def masked(text: str) -> str:
    """Return a text without personal data and secrets, and without what may be a piece of them."""
    for _, start, end in reversed(personal.find(text)):
        text = text[:start] + MASK + text[end:]
    return _PIECE.sub(MASK, text)


def visible(text: str) -> str:
    """Return a text on one line, with what is unseen, or acts on a terminal, written as its code."""
    return _UNSEEN.sub(lambda m: {"\n": " ", "\t": " ", "\r": " "}.get(m[0], f"<U+{ord(m[0]):04X}>"), text)


def excerpt(text: str, start: int = 0, end: int | None = None, width: int = 60) -> str:
    """Return some 60 characters around text[start:end], on one line, without pieces of words or numbers that the edges cut."""
    end = len(text) if end is None else end
    left = max(0, start - max(0, width - (end - start)) // 2)
    right = left + width
    piece = text[left:right]
    if left and " " in piece[: width // 2]:
        piece = piece[piece.index(" ") :].lstrip(_NUMBER)
    if right < len(text) and " " in piece[-width // 2 :]:
        piece = piece[: piece.rindex(" ")].rstrip(_NUMBER)
    return f"{'…' if left else ''}{visible(piece).strip()}{'…' if right < len(text) else ''}"


def locate(row: Any, text: str, piece: str = "") -> str | None:
    """Return the path of the row's string that is `text` ("messages[1].content"), else that holds it or the piece of it."""
    return _held(row, text, piece)[0]


def _held(row: Any, text: str, piece: str) -> tuple[str | None, str | None]:
    paths = list(_strings(row, ""))
    for fits in (
        lambda s: s == text,
        lambda s: bool(text.strip()) and text in s,
        lambda s: bool(piece) and piece in s,
        lambda s: bool(s.strip()) and s in text,
    ):
        found = next(((path, s) for path, s in paths if fits(s)), None)
        if found is not None:
            return found
    return None, None


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, string) of every string inside, in order; without recursion, for rows are nested as deep as JSON allows."""
    left: list[tuple[str, Any]] = [(path, value)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            left += [(f"{path}.{key}" if path else str(key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            left += [(f"{path}[{i}]", inner) for i, inner in reversed(list(enumerate(value)))]
