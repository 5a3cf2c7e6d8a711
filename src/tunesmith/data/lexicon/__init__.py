"""The project's own word lists: toxic words by weight, identity terms by group, pairs that swap. Read once, when first asked for."""

import functools
import re
from importlib import resources


def lines(name: str) -> list[list[str]]:
    """Return the words of each line of `name`.txt, without comments.

    `word/a/b` is written out as word, worda, wordb; `stem+a+b` as stema, stemb; _ stands for a space.
    """
    text = resources.files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return [_written_out(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _written_out(words: list[str]) -> list[str]:
    out = []
    for word in words:
        stem, *endings = re.split("[/+]", word.replace("_", " "))
        itself = [] if word[len(stem) :].startswith("+") else [stem]
        out += itself + [stem + ending for ending in endings]
    return out


def words(name: str, key: str) -> frozenset[str]:
    """Return the words of the list's lines that begin with `key`."""
    return frozenset(word for first, *listed in lines(name) if first == key for word in listed)


@functools.cache
def toxic_words() -> dict[str, float]:
    """Return weights in (0, 1) by lower-case word or phrase (words parted by one space)."""
    out: dict[str, float] = {}
    for weight, _, *listed in lines("toxicity"):
        for word in listed:
            out[word] = max(float(weight), out.get(word, 0.0))  # idiot is a word of four languages
    return out


@functools.cache
def identity() -> dict[str, tuple[str, str]]:
    """Return (dimension, group) by lower-case term: "muslim" -> ("religion", "muslim")."""
    return {term: (dimension, group) for dimension, group, *terms in lines("identity") for term in terms}


@functools.cache
def swaps(dimensions: tuple[str, ...] = ("gender",)) -> dict[str, tuple[str, bool]]:
    """Return (its counterpart, is it a name) by lower-case word, for the dimensions' pairs, both ways."""
    out: dict[str, tuple[str, bool]] = {}
    for dimension, *words in lines("swaps"):
        name = dimension == "name"
        if dimension in dimensions or (name and "gender" in dimensions):
            for a, b in zip(words[::2], words[1::2], strict=True):
                out.setdefault(a, (b, name))
                out.setdefault(b, (a, name))
    return out


@functools.cache
def topics() -> dict[str, str]:
    """Return the topic ("negative", "positive", or a profession's own name) by lower-case word."""
    return {word: topic for topic, *listed in lines("topics") for word in listed}
