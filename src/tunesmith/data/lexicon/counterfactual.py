"""The same text about somebody else: gendered words, names and identity terms swapped, both ways."""

import re
from collections.abc import Sequence

from tunesmith.data import lexicon

DIMENSIONS = ("gender", "religion", "ethnicity", "age", "orientation", "disability")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_MARK = "\ue000"  # stands before a swapped word while articles are set; of private use
_ARTICLE = re.compile(rf"\b(?P<a>[Aa])n?(?P<space>[ \t]+){_MARK}(?P<first>\w)")
_VOWELS = frozenset("aeioAEIO")
_AFTER = re.compile(r"[ \t]+([^\W\d_]+)")
# After these words "her" is an object ("told her that", "with her and"), for no noun follows; "him" stands there.
_NO_NOUN = lexicon.words("pronouns", "nounless")
# "help her carry it": after these verbs a bare verb may follow, which is no noun.
_LETS = lexicon.words("pronouns", "lets")
_MOVES = lexicon.words("pronouns", "moves")
_MAYBE = lexicon.words("pronouns", "maybe")
_VERBS = lexicon.words("pronouns", "verbs")


def counterfactual(text: str, dimensions: Sequence[str] = ("gender",)) -> str:
    """Return the text with every term of these dimensions swapped: "She told her son" -> "He told his daughter".

    Case is kept; all other characters stay. "her" becomes "his" before a noun and "him" elsewhere, "his" becomes "her" or
    "hers", by the words around them. Names are swapped by a list of common English ones, only where they are capitalised.
    """
    pairs = lexicon.swaps(tuple(dimensions))
    gender = "gender" in dimensions
    low = text.lower()
    if not gender and not any(word in low for word in pairs):
        return text

    def swapped(match: re.Match[str]) -> str:
        word = match[0]
        key = word.lower()
        if gender and key in ("her", "his", "him", "hers"):
            return _cased(_pronoun(key, match), word)
        if key not in pairs:
            return word
        other, name = pairs[key]
        return word if name and word.islower() else _cased(other, word)

    if _MARK in text:
        return _WORD.sub(swapped, text)
    return _ARTICLE.sub(_article, _WORD.sub(lambda m: _marked(swapped(m), m[0]), text)).replace(_MARK, "")


def _marked(word: str, old: str) -> str:
    """Put the mark before a word that begins with a vowel where the old one did not, or the other way round."""
    return _MARK + word if (word[0] in _VOWELS) != (old[0] in _VOWELS) else word


def _article(match: re.Match[str]) -> str:
    """Return "a" or "an" as the swapped word after it wants: a young man, an old man."""
    return f"{match['a']}{'n' if match['first'] in _VOWELS else ''}{match['space']}{match['first']}"


def _pronoun(word: str, match: re.Match[str]) -> str:
    if word in ("him", "hers"):
        return "her" if word == "him" else "his"
    follows = _AFTER.match(match.string, match.end())
    after = follows[1].lower() if follows else ""
    if word == "his":
        return "her" if after and after not in _NO_NOUN - _MAYBE else "hers"
    before = re.search(r"([^\W\d_]+)[ \t]+$", match.string[max(0, match.start() - 24) : match.start()])
    verb = before[1].lower() if before else ""
    if (verb in _LETS and after in _VERBS) or (verb in _MOVES and after in ("home", "back")):
        return "him"
    adverb = (
        after.endswith("ly")
        and len(after) > 5
        and after not in ("family", "lovely", "elderly", "weekly", "monthly", "assembly")
    )
    noun = after and not adverb and after not in _NO_NOUN - _MAYBE
    return "his" if noun else "him"


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word
