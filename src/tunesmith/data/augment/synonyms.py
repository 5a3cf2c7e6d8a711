"""synonyms: some words give way to words of the same sense (Wei & Zou, 2019, "EDA", arXiv 1901.11196, synonym replacement)."""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from tunesmith.data.augment._words import like, open_places, pieces
from tunesmith.errors import InputError

WHOLE = False  # what follows a blank line in a prompt is material: it is left alone
BUILT_IN = Path(__file__).with_name("synonyms.txt")


def vary(
    text: str,
    rng: np.random.Generator,
    keep: Collection[str] = (),
    *,
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2,
    lexicon: str | None = None,
) -> str:
    """Return the text with a share `rate` of its words that have synonyms replaced, at least one; as it is where none has.

    `lexicon`: a file with one group of words of one sense per line, separated by commas, instead of the built-in list
    (English, some 80 groups; words of several senses are left out of it).
    """
    senses = groups(lexicon)
    cut = pieces(text)
    places = [i for i in open_places(text, cut, keep) if cut[i].lower() in senses]
    if not places:
        return text
    count = min(len(places), max(1, round(rate * len(places))))
    for i in rng.choice(places, count, replace=False).tolist():
        word = cut[i].lower()
        others = [other for other in senses[word] if other != word]
        if i > 1 and cut[i - 2].lower() in ("a", "an"):  # the article stays, so the sound after it must
            others = [other for other in others if (other[0] in "aeiou") == (word[0] in "aeiou")]
        if others:
            cut[i] = like(others[int(rng.integers(len(others)))], cut[i])
    return "".join(cut)


@cache
def groups(lexicon: str | None = None) -> dict[str, tuple[str, ...]]:
    """Return each word's group; InputError where the file is missing, or a line has fewer than two words."""
    file = BUILT_IN if lexicon is None else Path(lexicon)
    if not file.is_file():
        raise InputError(f"augment.synonyms.lexicon: there is no file {lexicon}.")
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        group = tuple(word.strip().lower() for word in line.split("#")[0].split(",") if word.strip())
        if len(group) == 1:
            raise InputError(
                f'{file}, line {number}: "{group[0]}" stands alone; a line is a group of synonyms: big, large.'
            )
        found |= {word: tuple(dict.fromkeys((*found.get(word, ()), *group))) for word in group}
    return found
