"""The languages of a set, from a sample of its rows; and the rows of another language than nearly all others.

Naming a language takes some 140 us, seven times as long as all else. So it is asked of a fair sample of 400 rows, and of at most
400 others with too few of the words that most of the first rows hold.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

from tunesmith.data.checks.found import Found, Item, excerpt
from tunesmith.data.checks.sample import Sample

_LEARN, _MOST = 200, 400
_SHORTEST, _READ, _LOOKED_AT = 80, 600, 250
_SURE, _ENOUGH = 0.9, 20
_MAIN, _RARE = 0.9, 0.03
# Dialects and small languages, which short texts of their great neighbours are taken for, are left out.
_KNOWN = [
    "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr",
    "hu", "id", "it", "ja", "ka", "kn", "ko", "lt", "lv", "ml", "mr", "ms", "ne", "nl", "no", "pa", "pl", "pt",
    "ro", "ru", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh",
]  # fmt: skip
_NAMED = re.compile(
    r"translat|language|\b(?:english|french|german|spanish|italian|portuguese|dutch|swedish|russian|chinese|japanese|korean|"
    r"arabic|hindi|latin|polish|turkish|greek|vietnamese|indonesian|finnish|danish|norwegian|czech|romanian|hungarian)\b",
    re.IGNORECASE,
)  # fmt: skip
_NO_PROSE = re.compile(r"```[\s\S]*?(?:```|$)|https?://\S+|[{}<>=\[\]|\\]")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([name for name in _KNOWN if name in identifier.labels])
    return identifier


def language(text: str) -> tuple[str, float]:
    """Return (ISO 639-1 code, probability) of a text; ("", 0.0) of one with too few letters to tell."""
    prose = _NO_PROSE.sub(" ", text[:_READ])
    letters = sum(map(str.isalpha, prose))
    if letters < (_SHORTEST if prose.isascii() else _SHORTEST // 3) * 0.6:
        return "", 0.0
    name, sure = _identifier().classify(prose)
    return str(name), float(sure)


_Seen = tuple[int, str, str]
"""(row, the beginning of its text, of its prompt)."""


class Languages:
    """The languages of one file's answers."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._words: frozenset[str] | None = None
        self._commonest: list[str] = []
        self._sample: Sample[_Seen] = Sample(_MOST)
        self._odd: list[_Seen] = []
        self._shares: Counter[str] = Counter()

    def see(self, item: Item) -> None:
        """Look at one record."""
        text = item.answers[0] if len(item.answers) == 1 else max(item.answers, key=len, default="")
        if len(text) < _SHORTEST:  # then all of it
            text = item.text
        if len(text) < _SHORTEST // 3 or (len(text) < _SHORTEST and text.isascii()):
            return
        one = (item.number, text[:_READ], item.prompt[:_READ])
        self._sample.see(one)
        if self._words is None:
            self._first.append(text)
            if len(self._first) >= _LEARN:
                self._learn()
        elif not self._usual(text):
            head = text[:_LOOKED_AT]
            few = len(self._words.intersection(head.split())) < (3 if len(head) == _LOOKED_AT else 2)
            if few and len(self._odd) < _MOST:
                self._odd.append(one)

    def _usual(self, text: str) -> bool:
        """Say whether a text has two of the three commonest words: enough to know the language, and quickly found."""
        a, b, c = self._commonest
        return (a in text and (b in text or c in text)) or (b in text and c in text)

    def _learn(self) -> None:
        """Take the words that stand in most texts as the mark of the main language."""
        common: Counter[str] = Counter()
        for text in self._first:
            common.update(set(text[:_READ].lower().split()))
        words = [w for w, n in common.most_common(40) if n > len(self._first) / 8 and w.isalpha()]
        known = (words + ["\0"] * 3)[:3]  # in place of a word that is not there: what no text has
        self._commonest = [f" {word} " for word in known]
        self._words = frozenset(words + [w.capitalize() for w in words])
        self._first = []

    def shares(self) -> dict[str, float]:
        """Return {language: share of the sample}, the most frequent first; empty where no row was long enough to tell."""
        total = self._shares.total()
        return {name: round(n / total, 4) for name, n in self._shares.most_common()}

    def end(self, found: Found) -> None:
        """Name the languages, and note the rows of one other than that of nine rows in ten."""
        sample = [(seen, name) for seen in self._sample.records() if (name := _named(seen[1]))]
        self._shares = Counter(name for _, name in sample)
        total = self._shares.total()
        (main, most), *_ = self._shares.most_common(1) or [("", 0)]
        if total < _ENOUGH or most < _MAIN * total:
            return
        named = {*sample, *((seen, _named(seen[1])) for seen in self._odd)}
        for (number, text, prompt), name in sorted(named):
            if name in (main, "") or self._shares[name] > _RARE * total or _NAMED.search(prompt):
                continue
            message = f"the row seems to be in {name}; {most / total:.0%} are in {main}."
            found.add("other_language", number, None, message, excerpt(text))


def _named(text: str) -> str:
    """Return the language of a text, "" where that is not sure."""
    name, sure = language(text)
    return name if sure >= _SURE else ""
