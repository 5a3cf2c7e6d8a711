"""How toxic a text's words are, by our own list: whole words, also where they are written to get past a list."""

import functools
import re
import unicodedata

from tunesmith.data import lexicon

WINDOW = 100
"""Words over which weights add up: a long text is as toxic as its worst hundred words."""
DISGUISED = 0.4
"""The least weight of a word that is looked for in disguise: chance makes the mild ones too."""
_MARKS = ".,;:?!\"'()[]{}<>*_-"
_LONGEST = 200  # characters without a space; beyond are data, not words
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CORE = re.compile(r"[^\s.,;:?\"“”()\[\]{}<>/~`]+")
_LEET = str.maketrans("013457@$!|+€", "oieastasiite")
_INVISIBLE = str.maketrans(dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")))
_RUN = re.compile(r"(.)\1{2,}")
_APART = re.compile(r"[^\W\d_](?:([.*_-])[^\W\d_])(?:\1[^\W\d_])+")


def score(text: str) -> float:
    """Return how toxic a text is, in [0, 1]: 1 - prod(1 - weight) over what is found in its worst 100 words.

    Weights are the list's: one slur gives 0.9, an obscenity 0.6, three mild insults together 0.49. Words are whole words,
    so Scunthorpe and assassin are 0. Whether a word is quoted or discussed is not seen.
    """
    found = hits(text)
    worst = 0.0
    for i, (start, _) in enumerate(found):
        left = 1.0
        for at, weight in found[i:]:
            if at - start >= WINDOW:
                break
            left *= 1 - weight
        worst = max(worst, 1 - left)
    return worst


def hits(text: str) -> list[tuple[int, float]]:
    """Return (number of the word among those parted by white space, weight) of all that the list knows, in order."""
    low = text.lower()
    words = (low if low.isascii() else low.translate(_INVISIBLE)).split()
    found = [(i, weight) for i, word in enumerate(words) if (weight := _weight(word))]
    joined = " ".join(words)
    for phrase, pattern in _phrases():
        if phrase in joined:
            at, seen = 0, 0
            for match in pattern.finditer(joined):
                at, seen = at + joined.count(" ", seen, match.start()), match.start()
                found.append((at, lexicon.toxic_words()[phrase]))
    return sorted(found + _apart(words))


@functools.cache
def _phrases() -> list[tuple[str, re.Pattern[str]]]:
    return [(p, re.compile(rf"(?<!\w){re.escape(p)}(?!\w)")) for p in lexicon.toxic_words() if " " in p]


@functools.lru_cache(maxsize=100_000)
def _weight(word: str) -> float:
    """Return the weight of what stands between two spaces: the worst of its words, as written or in disguise."""
    if len(word) > _LONGEST:
        return 0.0
    weights = lexicon.toxic_words()
    plain = max((weights.get(w, 0.0) for w in _WORD.findall(word)), default=0.0)
    if _APART.fullmatch(word.strip(_MARKS)):
        plain = max(plain, weights.get(re.sub(r"[.*_-]", "", word.strip(_MARKS)), 0.0))
    hidden = max((weights.get(w, 0.0) for core in _CORE.findall(word) for w in _readings(core)), default=0.0)
    return max(plain, hidden if hidden >= DISGUISED else 0.0)


def _readings(core: str) -> set[str]:
    """Return the words that a disguise may stand for: l33t, sh*t, fuuuck, f.u.c.k, fück."""
    core = core.strip("*_-+'!#|")
    if core.isascii() and core.isalpha() and not _RUN.search(core):
        return set()
    bare = core if core.isascii() else "".join(c for c in unicodedata.normalize("NFKD", core) if ord(c) < 0x300)
    plain = bare.translate(_LEET)
    out = {w for w in (plain, _RUN.sub(r"\1", plain), _RUN.sub(r"\1\1", plain)) if w != core and w.isalpha()}
    if not core.isascii():
        out = {w for w in out if lexicon.toxic_words().get(w, 0.0) >= 0.6}  # signs on letters are other words' too
    if (
        re.fullmatch(r"[^\W\d_]+[*#@!$-]{1,3}[^\W\d_]+|[^\W\d_][*#]{2,4}[^\W\d_]*", core)
        and not core.replace("-", "").isalpha()
    ):
        shape = re.compile("".join(c if c.isalpha() else "." for c in core))
        out |= {w for w in lexicon.toxic_words() if len(w) == len(core) and shape.fullmatch(w)}
    return out


def _apart(words: list[str]) -> list[tuple[int, float]]:
    """Return words whose letters stand apart, of four letters and more: "f u c k"."""
    singles = [i for i, word in enumerate(words) if len(word) == 1 and word.isalpha()]
    found, start = [], 0
    for end in range(1, len(singles) + 1):
        if end == len(singles) or singles[end] != singles[end - 1] + 1:
            word = "".join(words[i] for i in singles[start:end])
            weight = lexicon.toxic_words().get(word, 0.0) if len(word) > 3 else 0.0
            found += [(singles[start], weight)] if weight >= DISGUISED else []
            start = end
    return found
