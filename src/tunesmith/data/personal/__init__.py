"""Personal data and secrets in a text, found by patterns that prove what they find: check digits, ranges, words before them."""

import bisect
import functools
import re
from collections.abc import Iterable

from tunesmith.data.personal import contact, finance, identity, network, person, secrets
from tunesmith.data.personal.pattern import Pattern

Finding = tuple[str, int, int]
"""(kind, start, end): text[start:end] is the value."""

# In order of trust: where two overlap the earlier one stands.
PATTERNS: tuple[Pattern, ...] = (
    secrets.PATTERNS + finance.PATTERNS + network.PATTERNS + identity.PATTERNS + contact.PATTERNS + person.PATTERNS
)
KINDS: tuple[str, ...] = tuple(dict.fromkeys(p.kind for p in PATTERNS))
_PART = 1500  # characters
_NUMBER = re.compile(r"\d(?:[ ./()-]{0,3}\d){5}")  # six digits with what stands between the groups of a number
_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
_BYTES = re.compile(r"[:-]..[:-]..[:-]..[:-]")
_WORDS = re.compile(r"[^\W\d_]+")
_DIGIT = "\x1f"  # white space for str.split, so that digits part words and are still seen
_SPACES = str.maketrans({chr(c): _DIGIT if chr(c).isdigit() else " " for c in range(128) if not chr(c).isalpha()})


def find(text: str, kinds: Iterable[str] = KINDS) -> list[Finding]:
    """Return the personal data and secrets of these kinds in a text, in order and without overlap.

    Names and addresses are found only where the words around them are clear; a number must pass its check digit, its
    range, or stand after a word that says what it is. Values that can be nobody's (reserved ranges, placeholders, the
    pseudonyms of `pseudonyms.py`) are not found.
    """
    kinds = kinds if isinstance(kinds, tuple) else tuple(kinds)
    found: list[Finding] = []
    at = 0
    for part in _parts(text):
        found += [(kind, at + start, at + end) for kind, start, end in _find(part, kinds)]
        at += len(part)
    return found


def _parts(text: str) -> list[str]:
    """Return a long text in parts of whole paragraphs, joined they are the text: each pattern is asked only where a part lets it match."""
    if len(text) <= 2 * _PART or "-----BEGIN" in text:  # a key's block is one, blank lines and all
        return [text]
    parts, start = [], 0
    while (cut := text.find("\n\n", start + _PART)) >= 0:
        parts.append(text[start : cut + 2])
        start = cut + 2
    return [*parts, text[start:]]


def _find(text: str, kinds: tuple[str, ...]) -> list[Finding]:
    low = text.lower()
    by_word, by_needle, by_gate = _asked(kinds)
    plain = low.translate(_SPACES) if low.isascii() else low
    words = plain.split() if plain is not low else _WORDS.findall(low)
    ranks: set[int] = set()
    if not by_word.keys().isdisjoint(words):
        ranks.update(*(by_word[w] for w in words if w in by_word))
    gates = _gates(text, _DIGIT in plain or plain is low)
    for gate in gates:
        ranks.update(by_gate.get(gate, ()))
        ranks.update(rank for needle, rank in by_needle.get(gate, ()) if needle in low)
    return _search(text, low, ranks, gates) if ranks else []


def _gates(text: str, digits: bool) -> list[str]:
    """Return the gates that a text opens; "" is always open."""
    gates = [""]
    if digits:
        gates.append("digit")
        if _NUMBER.search(text):
            gates.append("number")
        if _DOTTED.search(text):
            gates.append("dotted")
    if max(map(len, text.split()), default=0) >= 20:
        gates.append("long")
    if text.count(":") >= 2:
        gates.append("colon")
    if (text.count(":") >= 5 or text.count("-") >= 5) and _BYTES.search(text):
        gates.append("pairs")
    return gates


def _search(text: str, low: str, ranks: set[int], gates: list[str]) -> list[Finding]:
    found: list[tuple[int, int, str]] = []
    for rank in sorted(ranks):
        pattern = PATTERNS[rank]
        if pattern.gate not in gates or (pattern.words and pattern.needs and not any(n in low for n in pattern.needs)):
            continue
        for match in pattern.regex.finditer(text):
            span = pattern.check(match)
            if span:
                at = bisect.bisect(found, span)
                after_last = at == 0 or found[at - 1][1] <= span[0]
                before_next = at == len(found) or span[1] <= found[at][0]
                if after_last and before_next:
                    found.insert(at, (*span, pattern.kind))
    return [(kind, start, end) for start, end, kind in found]


@functools.lru_cache(maxsize=32)
def _asked(
    kinds: tuple[str, ...],
) -> tuple[dict[str, list[int]], dict[str, list[tuple[str, int]]], dict[str, list[int]]]:
    """Return the ranks of the patterns: by word, by gate with a needle, and by gate for those that need nothing else."""
    by_word: dict[str, list[int]] = {}
    by_needle: dict[str, list[tuple[str, int]]] = {}
    by_gate: dict[str, list[int]] = {}
    for rank, pattern in enumerate(PATTERNS):
        if pattern.kind in kinds:
            for word in pattern.words:
                by_word.setdefault(word, []).append(rank)
            for needle in pattern.needs if not pattern.words else ():
                by_needle.setdefault(pattern.gate, []).append((needle, rank))
            if not pattern.words and not pattern.needs:
                by_gate.setdefault(pattern.gate, []).append(rank)
    return by_word, by_needle, by_gate
