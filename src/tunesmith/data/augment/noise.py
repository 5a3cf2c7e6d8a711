"""noise: words left out, swapped, doubled or mistyped, as hurried people write (EDA's deletion and swap, arXiv 1901.11196)."""

from collections.abc import Collection
from typing import Annotated

import numpy as np
from pydantic import Field

from tunesmith.data.augment._words import open_places, pieces

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEAR = {key: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in _ROWS for i, key in enumerate(row)}
_VOWELS = "aeiou"
_NO_VOWELS = str.maketrans("", "", _VOWELS)
WHOLE = False
_SMALL = frozenset("a an the of to for in on at by with that which is are and your you please some".split())  # noqa: SIM905
_SIGNS = frozenset("not no never without except only unless cannot don't doesn't isn't".split())  # noqa: SIM905
KINDS = ("mistype", "swap", "drop", "double")


def vary(
    text: str,
    rng: np.random.Generator,
    keep: Collection[str] = (),
    *,
    rate: Annotated[float, Field(gt=0, le=1)] = 0.08,
    mistype: bool = True,
    swap: bool = True,
    drop: bool = True,
    double: bool = True,
) -> str:
    """Return the text with a share `rate` of its words (at least one) disturbed, each in one of the ways left on.

    mistype: a letter beside the right key, left out, doubled, or two exchanged (words of four letters and more);
    swap: two neighbouring words exchanged; drop: a small word left out; double: a word written twice.
    """
    kinds = [kind for kind, on in zip(KINDS, (mistype, swap, drop, double), strict=True) if on]
    cut = pieces(text)
    open_ = [i for i in open_places(text, cut, keep) if cut[i].lower() not in _SIGNS]
    ways = {i: found for i in open_ if (found := [k for k in kinds if _can(k, i, cut, open_)])}
    if not ways:
        return text
    count = min(len(ways), max(1, round(rate * len(open_))))
    chosen = sorted(
        rng.choice(list(ways), count, replace=False).tolist(), reverse=True
    )  # later ones first: indices hold
    for i in chosen:
        kind = ways[i][int(rng.integers(len(ways[i])))]
        if kind == "swap":
            cut[i], cut[i + 2] = cut[i + 2], cut[i]
        elif kind == "drop":
            del cut[i : i + 2]
        elif kind == "double":
            cut[i] = f"{cut[i]} {cut[i].lower()}"
        elif kind == "mistype" and len(cut[i]) > 3:  # a short one may have been put here
            cut[i] = mistyped(cut[i], rng)
    return "".join(cut)


def _can(kind: str, i: int, cut: list[str], words: list[int]) -> bool:
    """Say whether a word can be disturbed so: exchanged with the next one, left out where it is small, mistyped where it is long."""
    beside = i + 2 in words and cut[i + 1].isspace()
    small = len(words) > 3 and cut[i].lower() in _SMALL and i + 1 < len(cut) and cut[i + 1].isspace()
    return {"swap": beside, "drop": small, "mistype": len(cut[i]) > 3}.get(kind, True)


def mistyped(word: str, rng: np.random.Generator) -> str:
    """Return the word with one slip of the fingers, never in its first letter."""
    at = int(rng.integers(1, len(word) - 1))
    letter = word[at]
    match int(rng.integers(4)):
        case 0:
            near = _NEAR.get(letter.lower(), "")
            near = near if letter not in _VOWELS else near.translate(_NO_VOWELS)  # list would be lust
            return word[:at] + (near[int(rng.integers(len(near)))] if near else letter * 2) + word[at + 1 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2:
            return word[:at] + letter + word[at:]
    return word[:at] + word[at + 1] + letter + word[at + 2 :]
