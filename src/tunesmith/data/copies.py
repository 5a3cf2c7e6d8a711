"""When two rows are near duplicates: not only alike, but about the same thing with the same answer.

Overlap alone (Jaccard of words and pairs of words) takes a template with other content for a copy. What tells them apart is
where they differ: an edit falls anywhere, another subject, question, number or answer falls in its place.
"""

import re
from itertools import groupby, pairwise
from typing import NamedTuple

from tunesmith.data.ngrams import asked_and_answered, jaccard, shingles, words
from tunesmith.data.records import KINDS, Record, Verdict

ANSWERS = 0.5  # two models' answers to one prompt overlap by less, those of a copy with 15% of its words edited by more
BRIEF_ANSWERS = 0.3  # one edited word of six
BRIEF = 20  # words and pairs of words; an answer of fewer ("positive") does not tell that the questions were the same
SLIP = 7  # words and pairs of words, so four words: in fewer one letter may be what was asked for ("apple", "apples")
PROMPTS = 0.3
NUMBERS = 0.5  # of the numbers, where more than two are others (one edited number makes two)
PASSAGE = 4  # pairs of words in a row that the other prompt lacks: edited words make 2 or 3, another question more
SHORT = 20  # words; in fewer one word more is a larger part of what is said,
SHORT_OVERLAP = 0.62  # so more must be the same: two words of sixteen may be edited, not three


_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Said(NamedTuple):
    """A record as sets: of all it says (its template left out), of each answer; its numbers; its prompt's words in order; its kind."""

    all: set[str]
    answers: list[set[str]]
    numbers: set[str]
    asked: list[str]
    kind: str


def said(record: Record, template: frozenset[str] = frozenset()) -> Said:
    """Return what is compared of a record."""
    text, texts = asked_and_answered(record)
    asked, answered = words(text), [words(t) for t in texts]
    answers = [set(shingles(found)) for found in answered]
    numbers = {number for part in (text, *texts) for number in _NUMBER.findall(part)}
    kind = KINDS[type(record)] + (str(record.good) if isinstance(record, Verdict) else "")
    return Said({s for s in shingles(asked) if s not in template}.union(*answers), answers, numbers, asked, kind)


def similarity(a: Said, b: Said) -> float:
    """Return the Jaccard similarity of two rows, 0 where they differ in what matters (then they are no copies).

    Records of two kinds are none: a chat log makes a chat and a verdict of the same answer, which teach different things.
    """
    if a.kind != b.kind:
        return 0.0
    if len(a.numbers ^ b.numbers) > 2 and jaccard(a.numbers, b.numbers) < NUMBERS:
        return 0.0
    if not (_answered_alike(a, b) and _answered_alike(b, a) and _asked_alike(a, b)):
        return 0.0
    found = jaccard(a.all, b.all)
    short = min(len(a.all), len(b.all)) < 2 * SHORT
    return found if found >= SHORT_OVERLAP or not short else 0.0


def _answered_alike(a: Said, b: Said) -> bool:
    """Say whether every answer of the one has its like among the other's; to one and the same prompt a brief one must be equal,
    but for a slip of the pen."""
    for answer in a.answers:
        nearest = max((jaccard(answer, other) for other in b.answers), default=0.0)
        brief = len(answer) < BRIEF
        if nearest < (BRIEF_ANSWERS if brief else ANSWERS):
            return False
        if brief and nearest < 1 and a.asked == b.asked != [] and not any(misspelt(answer, o) for o in b.answers):
            return False
    return True


def misspelt(a: set[str], b: set[str]) -> bool:
    """Say whether two answers of four words or more (as shingles) differ in one word by a letter left out, doubled or swapped inside."""
    mine, other = ([s for s in x - y if " " not in s] for x, y in ((a, b), (b, a)))
    if len(mine) != 1 or len(other) != 1 or min(len(a), len(b)) < SLIP:
        return False
    short, long = sorted((mine[0], other[0]), key=len)
    if not (short.isalpha() and long.isalpha()) or len(long) < 4 or short[0] != long[0]:
        return False
    at = next((i for i, (c, d) in enumerate(zip(short, long, strict=False)) if c != d), len(short))
    if len(short) == len(long):
        return (
            short[at] + short[at + 1 : at + 2] == long[at + 1 : at + 2] + long[at] and short[at + 2 :] == long[at + 2 :]
        )
    return short[at:] == long[at + 1 :] and short[-1] == long[-1]


def _asked_alike(a: Said, b: Said) -> bool:
    if not a.asked and not b.asked:
        return True
    if jaccard(set(shingles(a.asked)), set(shingles(b.asked))) < PROMPTS or another_subject(a, b):
        return False
    long = any(len(answer) >= BRIEF for answer in a.answers)
    return long or not (another_question(a.asked, b.asked) or another_question(b.asked, a.asked))


def another_subject(a: Said, b: Said) -> bool:
    """Say whether a word of its prompt comes back in each row's answer that the other row has nowhere: copper, and gold."""

    def own(x: Said, y: Said) -> bool:
        return any(word not in y.all and any(word in answer for answer in x.answers) for word in x.asked)

    return own(a, b) and own(b, a)


def another_question(a: list[str], b: list[str]) -> bool:
    """Say whether a prompt has whole passages that the other lacks, not words edited here and there."""
    other = set(pairwise(b))
    lacking = [len(list(run)) for has, run in groupby(pair in other for pair in pairwise(a)) if not has]
    return bool(lacking) and sum(lacking) / len(lacking) + (len(lacking) == 1) > PASSAGE
