"""Quality: rules of thumb on what would be learnt from: too short or long, symbols, repetition, boilerplate, refusals, broken ends.

The defaults drop what is broken beyond doubt (a loop of one sentence, a page of signs). Stricter limits are options: `repetition: 1`
is Gopher's own. Rejected answers and ones found bad are not judged: they are there to be bad.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tunesmith.data import stats
from tunesmith.data.content import answer_texts
from tunesmith.data.ngrams import turn_text, words
from tunesmith.data.records import Preference, Prompt, Record, Text, Verdict
from tunesmith.data.rows import Rows

ORDER = 15
DEFAULT = True
COLUMNS = ("answer_chars", "answer_words", "symbols", "repetition", "boilerplate")
_TITLES = {
    "answer_chars": "characters per answer",
    "answer_words": "words per answer",
    "symbols": "share of symbols",
    "repetition": "repetition, in multiples of Gopher's limits",
    "boilerplate": "share of boilerplate",
}
_FEW_CHARS = 40
_ANSWER_LINES = 3  # of boilerplate, at least: one or two may be what was asked for ("write a call to subscribe")
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Limits(NamedTuple):
    """What the rules allow; None: anything."""

    min_chars: int | None
    max_chars: int | None
    min_words: int | None
    max_words: int | None
    symbols: float | None
    repetition: float | None
    boilerplate: float | None


class Measures(NamedTuple):
    """What was measured of one text; `repetition` in multiples of Gopher's limits, `repeats` the measure that has most of it,
    `loop` a word or letter over and over, in words."""

    chars: int
    words: int
    symbols: float
    repetition: float
    boilerplate: float
    repeats: str
    loop: str


def judged(record: Record) -> list[str]:
    """Return the texts that the rules are for: a Text's, trained turns, the best answer, one found good; empty ones left out."""
    if isinstance(record, Prompt) or (isinstance(record, Verdict) and not record.good):
        return []
    found = ["\n".join(turn_text(m) for m in record.chosen)] if isinstance(record, Preference) else answer_texts(record)
    return [text for text in found if text.strip()]


def measure(text: str, page: bool = False) -> Measures:
    """Return what the rules look at, of an answer or of a `page` of plain text."""
    bare = stats.without_code(text)
    signs = stats.symbols(bare) if len(text) >= _FEW_CHARS or "\ufffd" in text else 0.0
    most, name = max((value / stats.GOPHER[name], name) for name, value in stats.repetition(text).items())
    found = words(text)
    return Measures(
        chars=len(text),
        words=len(found),
        symbols=0.0 if signs > 0.5 and not page and stats.is_drawn(text) else signs,
        repetition=most,
        boilerplate=stats.boilerplate(text, 1 if page else _ANSWER_LINES),
        repeats=name,
        loop=stats.loop(found if bare is text else words(bare)),
    )


def faults(found: Measures, limits: Limits) -> Iterator[tuple[str, str]]:
    """Yield (rule, reason) of every limit that a text is beyond."""
    for what, value in (("chars", found.chars), ("words", found.words)):
        least, most = getattr(limits, f"min_{what}"), getattr(limits, f"max_{what}")
        unit = "characters" if what == "chars" else "words"
        if least is not None and value < least:
            yield "length", f"answer of {value} {unit}, at least {least} wanted"
        if most is not None and value > most:
            yield "length", f"answer of {value} {unit}, at most {most} wanted"
    if limits.symbols is not None and found.symbols > limits.symbols:
        yield "symbols", f"{found.symbols:.0%} of the characters are symbols, at most {limits.symbols:.0%} wanted"
    if limits.repetition is not None and found.loop:
        yield "repetition", found.loop
    elif limits.repetition is not None and found.repetition > limits.repetition:
        share = found.repetition * stats.GOPHER[found.repeats]
        yield "repetition", f"{named(found.repeats)} {share:.0%} of the text"
    if limits.boilerplate is not None and found.boilerplate > limits.boilerplate:
        yield "boilerplate", f"{found.boilerplate:.0%} of the text is boilerplate of web pages"


def named(measure: str) -> str:
    """Return a measure of repetition in words, to stand before "30% of the text"."""
    n = measure.rsplit("_", 1)[-1]
    if measure.startswith("top"):
        return f"the most frequent {n} words in a row are"
    return (
        f"runs of {n} words that stood before are"
        if n.isdigit()
        else f"repeated {measure.split('_')[1].rstrip('s')}s are"
    )


def apply(
    rows: Rows,
    *,
    min_chars: Count | None = None,
    max_chars: Count | None = None,
    min_words: Count | None = None,
    max_words: Count | None = None,
    max_symbols: Share | None = 0.75,
    repetition: Annotated[float, Field(gt=0)] | None = 5.0,
    max_boilerplate: Share | None = 0.5,
    c4: bool = False,
    refusals: Literal["keep", "drop"] = "keep",
    unfinished: Literal["keep", "drop"] = "keep",
) -> dict[str, Any]:
    """Drop rows with an answer beyond a limit (null: no limit). Returns facts.

    `repetition` is a multiple of Gopher's limits. `c4` holds plain texts to C4's rules for web pages. Refusals and answers that
    break off are counted, and dropped where asked. Writes the columns of COLUMNS, of several answers the worst.
    """
    limits = Limits(min_chars, max_chars, min_words, max_words, max_symbols, repetition, max_boilerplate)
    columns = [rows.column(name) for name in COLUMNS]
    rules: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for id_, record in rows:
        found = [measure(text, isinstance(record, Text)) for text in judged(record)]
        if not found:
            continue
        for at, column in enumerate(columns):
            column[id_] = min(m[at] for m in found) if at < 2 else max(m[at] for m in found)
        dropped = next((x for m in found for x in faults(m, limits)), None)
        for rule, reason in others(record, c4):
            seen[rule] += 1
            if rule == "c4" or (rule, "drop") in (("refusal", refusals), ("unfinished", unfinished)):
                dropped = dropped or (rule, reason)
        if dropped:
            rules[dropped[0]] += 1
            rows.drop(id_, dropped[1], rule=dropped[0])
    return facts(rules, seen, [rows.column(name) for name in COLUMNS])


def others(record: Record, c4: bool) -> Iterator[tuple[str, str]]:
    """Yield (rule, reason) of what is found by looking at words rather than by measuring."""
    if isinstance(record, Text):
        found = stats.c4_fault(record.text) if c4 else None
        if found:
            yield "c4", found
        return
    texts = judged(record)
    if any(stats.refuses(text) for text in texts):
        yield "refusal", "the answer is a refusal"
    if any(stats.unfinished(text) for text in texts):
        yield "unfinished", "the answer breaks off"


def facts(rules: Counter[str], seen: Counter[str], columns: Sequence[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return the facts for the card: drops by rule, what was counted, and how the measures are spread."""
    numbers = {f"dropped_{rule}": count for rule, count in sorted(rules.items())}
    summary = (
        f"{rules.total():,} row{'s are' if rules.total() != 1 else ' is'} beyond a limit"
        if rules
        else "No row is beyond a limit"
    )
    also = [f"{seen[k]:,} {name}" for k, name in (("refusal", "refusals"), ("unfinished", "that break off")) if seen[k]]
    histograms = []
    for name, column in zip(COLUMNS, columns, strict=True):
        values = column[~np.isnan(column)]
        if len(values) and values.max() > 0:
            long = name.startswith("answer")
            edges = (
                np.unique(np.geomspace(1, values.max() + 1, 21).round())
                if long
                else np.linspace(0, max(1, values.max()), 21)
            )
            counts = np.histogram(values, bins=edges)[0].tolist() if len(edges) > 1 else [len(values)]
            edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
            histograms.append({"title": _TITLES[name], "edges": [round(float(e), 4) for e in edges], "counts": counts})
    return {
        "summary": f"{summary}{'; found ' + ' and '.join(also) if also else ''}.",
        "numbers": {**numbers, "refusals": seen["refusal"], "unfinished": seen["unfinished"]},
        "histograms": histograms,
    }
