"""bias: who the rows speak of, how often and in what company, and the same rows about others (counterfactuals)."""

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from tunesmith.data import lexicon
from tunesmith.data.content import rewritten, texts
from tunesmith.data.lexicon.counterfactual import counterfactual
from tunesmith.data.records import Record
from tunesmith.data.rows import Rows
from tunesmith.evaluation.statistics import wilson

ORDER = 110
DEFAULT = True
Dimension = Literal["gender", "religion", "ethnicity", "age", "orientation", "disability"]
Group = tuple[str, str]
"""(dimension, group): ("gender", "female")."""
_SENTENCE = re.compile(r"[.!?\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:[-+][^\W\d_]+)*")
_COMMON = 20  # professions told in the card
_SEEN = 5  # sentences of a group from which its company is told
_ENOUGH = 30  # rows from which a mean has a normal interval


def apply(rows: Rows, *, augment: bool = False, dimensions: list[Dimension] = ["gender"]) -> dict[str, Any]:  # noqa: B006 (never changed)
    """Count identity terms by group, and what they stand beside; with `augment` add each row's counterfactual.

    A counterfactual is the row with the terms of `dimensions` swapped (she and he, Mary and John), prompt and answer alike;
    rows that name nobody have none. Words are counted, not meant: "white" is counted before people only, names are not.
    """
    tally = Tally()
    toxicity = rows.columns.get("toxicity")
    added, before = 0, len(rows.alive)
    for id_, record in rows:
        if id_ >= before:
            break
        tally.add(record, None if toxicity is None else float(toxicity[id_]))
        other = of_others(record, dimensions) if augment else record
        if other is not record:
            signed = replace(
                other, extra={**other.extra, "provenance": {"method": "counterfactual", "from": str(record.origin)}}
            )
            rows.add(signed, f"the counterfactual of {record.origin}", from_=[id_], method="counterfactual")
            added += 1
    return _facts(tally, added, augment)


def of_others(record: Record, dimensions: list[Dimension]) -> Record:
    """Return the record's counterfactual, itself where it names nobody. Tool calls stay: their results would not fit."""
    return rewritten(record, lambda place, text: text if ".tool_calls" in place else counterfactual(text, dimensions))


@dataclass
class Tally:
    """Counts over all rows: rows and sentences with each group, and sentences with a group and a topic together."""

    rows: int = 0
    sentences: int = 0
    held: Counter[Group] = field(default_factory=Counter)
    groups: Counter[Group] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    both: Counter[tuple[Group, str]] = field(default_factory=Counter)
    scores: dict[Group, list[float]] = field(default_factory=dict)
    all_scores: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, record: Record, toxicity: float | None) -> None:
        """Count one record; `scores` hold (n, sum, sum of squares) of its toxicity."""
        self.rows += 1
        held: set[Group] = set()
        for place, text in texts(record):
            if ".tool_calls" not in place:
                for sentence in _SENTENCE.split(text.lower()):
                    if sentence:
                        held |= self._sentence(sentence)
        self.held.update(held)
        if toxicity is not None and not math.isnan(toxicity):
            for sums in (self.all_scores, *(self.scores.setdefault(g, [0.0, 0.0, 0.0]) for g in held)):
                sums[0] += 1
                sums[1] += toxicity
                sums[2] += toxicity * toxicity

    def _sentence(self, sentence: str) -> set[Group]:
        self.sentences += 1
        words = _WORD.findall(sentence)
        known = lexicon.topics()
        topics = {known[w] for w in words if w in known}
        groups = groups_in(words)
        self.topics.update(topics)
        self.groups.update(groups)
        self.both.update((g, t) for g in groups for t in topics)
        return groups


def groups_in(words: list[str]) -> set[Group]:
    """Return the groups that the words of a sentence name; a term may be two words ("black women")."""
    known = lexicon.identity()
    found = {known[w] for w in words if w in known}
    if not _first_words().isdisjoint(words):
        found |= {known[pair] for pair in map(" ".join, pairwise(words)) if pair in known}
    return found


@functools.cache
def _first_words() -> frozenset[str]:
    return frozenset(term.split()[0] for term in lexicon.identity() if " " in term)


def association(both: int, group: int, topic: int, sentences: int) -> tuple[float, float, float]:
    """Return the pointwise mutual information of a group and a topic over sentences, in bits, with its 95% interval.

    log2(p(topic | group) / p(topic)) (Church and Hanks, 1990); the interval is Wilson's of p(topic | group), so it is
    honest for few sentences. -inf where they never meet.
    """
    base = topic / sentences

    def bits(share: float) -> float:
        return math.log2(share / base) if share > 0 else -math.inf

    low, high = wilson(both, group)
    return bits(both / group), bits(low), bits(high)


def _facts(tally: Tally, added: int, augment: bool) -> dict[str, Any]:
    female, male = tally.held["gender", "female"], tally.held["gender", "male"]
    said = f"{female:,} rows name women and {male:,} men" if female or male else "no row names women or men"
    return {
        "summary": f"{said}, of {tally.rows:,}" + (f"; {added:,} counterfactual rows added" if augment else ""),
        "numbers": {
            "rows": tally.rows,
            "rows_naming_women": female,
            "rows_naming_men": male,
            **({"women_per_man": round(female / male, 3)} if male else {}),
            **({"counterfactuals": added} if augment else {}),
        },
        "tables": [
            t for t in (_representation(tally), _company(tally), _professions(tally), _toxicity(tally)) if t["rows"]
        ],
    }


def _representation(tally: Tally) -> dict[str, Any]:
    total = Counter[str]()
    for (dimension, _), n in tally.held.items():
        total[dimension] += n
    lines = []
    for (dimension, group), n in sorted(tally.held.items(), key=lambda item: (item[0][0], -item[1])):
        low, high = wilson(n, total[dimension])
        lines.append(
            [dimension, group, n, round(n / tally.rows, 4), round(n / total[dimension], 3), _interval(low, high)]
        )
    columns = ["dimension", "group", "rows", "share of all rows", "share within the dimension", "95% interval"]
    return {"title": "Identity terms: who the rows speak of", "columns": columns, "rows": lines}


def _company(tally: Tally) -> dict[str, Any]:
    lines = []
    for (dimension, group), n in sorted(tally.groups.items()):
        for topic in ("negative", "positive"):
            if n >= _SEEN and tally.topics[topic]:
                both = tally.both[(dimension, group), topic]
                pmi, low, high = association(both, n, tally.topics[topic], tally.sentences)
                lines.append([dimension, group, topic, both, n, _bits(pmi), f"{_bits(low)} to {_bits(high)}"])
    columns = [
        "dimension",
        "group",
        "words",
        "sentences with both",
        "sentences of the group",
        "PMI (bits)",
        "95% interval",
    ]
    return {
        "title": "Identity terms beside negative and positive words (0 bits: as often as in any sentence)",
        "columns": columns,
        "rows": lines,
    }


def _professions(tally: Tally) -> dict[str, Any]:
    lines: list[tuple[str, int, int, int, float, str]] = []
    for topic, n in tally.topics.items():
        women, men = (tally.both[("gender", g), topic] for g in ("female", "male"))
        if topic.startswith("profession:") and women + men >= _SEEN:
            low, high = wilson(women, women + men)
            share = round(women / (women + men), 3)
            lines.append((topic.removeprefix("profession:"), n, women, men, share, _interval(low, high)))
    lines.sort(key=lambda line: -(line[2] + line[3]))
    columns = ["profession", "sentences", "with women", "with men", "share of women", "95% interval"]
    return {
        "title": "Professions beside gendered words",
        "columns": columns,
        "rows": [list(line) for line in lines[:_COMMON]],
    }


def _toxicity(tally: Tally) -> dict[str, Any]:
    """Mean toxicity of the rows that name a group less that of the others; the interval is Welch's with the normal's 1.96."""
    lines = []
    for (dimension, group), (n, total, squares) in sorted(tally.scores.items()):
        others = [a - b for a, b in zip(tally.all_scores, (n, total, squares), strict=True)]
        if n >= _ENOUGH and others[0] >= _ENOUGH:
            mean, rest = total / n, others[1] / others[0]
            spread = sum(max(s / k - (t / k) ** 2, 0.0) / (k - 1) for k, t, s in ((n, total, squares), others))
            half = 1.96 * math.sqrt(spread)
            lines.append(
                [
                    dimension,
                    group,
                    int(n),
                    round(mean, 4),
                    round(rest, 4),
                    _interval(mean - rest - half, mean - rest + half, 4),
                ]
            )
    columns = ["dimension", "group", "rows", "mean toxicity", "of the other rows", "95% interval of the difference"]
    return {"title": "Toxicity of the rows that name a group", "columns": columns, "rows": lines}


def _interval(low: float, high: float, digits: int = 3) -> str:
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _bits(value: float) -> str:
    return "never" if value == -math.inf else f"{value:+.2f}"
