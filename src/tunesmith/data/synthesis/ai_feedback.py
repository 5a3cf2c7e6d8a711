"""ai_feedback: answers to each prompt, ranked by a judge: preference rows (RLAIF: Lee et al., 2023, arXiv 2309.00267, section 2).

With principles each row draws one, by which its pairs are judged (RL-CAI: Bai et al., 2022, arXiv 2212.08073, section 4.1).
"""

import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Any

from pydantic import Field

from tunesmith.data.records import Preference, Record
from tunesmith.data.synthesis import _judge
from tunesmith.data.synthesis._check import unusable_unless_refusal
from tunesmith.data.synthesis._constitution import Principle, read_principles
from tunesmith.data.synthesis._rounds import Chain, Made, NoAnswer, Refused, Request, Rounds, Sampling, Seed, together
from tunesmith.data.synthesis._turns import as_messages, asked_turns, category, own_answers, shown
from tunesmith.errors import InputError

NEW_PROMPTS = False  # a row asks what its seed asks
WHERE = "synthesize: ai_feedback.principles"
_JUDGING = 1 << 10  # the judge's requests are numbered from here, the answers from 0
_FRAME = 200  # tokens of a judge's question, about, beside the prompt and the answers
_LETTERS = {1.0: "A", 0.0: "B", 0.5: "tie", None: None}
Asked = Generator[Request, str, tuple[float | None, str]]


@dataclass(frozen=True, slots=True)
class _Way:
    """How pairs are judged."""

    sampling: Sampling
    soft: bool
    reasons: bool
    tie: float
    verdict_tokens: int


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    tally: _judge.Tally,
    *,
    answers: Annotated[int, Field(ge=0, le=8)] = 2,
    row_answers: bool = False,
    principles: list[Any] | str | None = None,
    soft: bool = False,
    reasons: bool = False,
    tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.05,
    verdict_tokens: Annotated[int, Field(ge=1, le=100_000)] = 32,
) -> Rounds:
    """Return a preference row per seed: `answers` of the model, with row_answers the row's own too, ranked by the judge in pairs.

    Each pair is asked about in both orders (`tally` counts how they came out). An answer's score is the mean of its pairs: 1 won, 0
    lost, 0.5 a tie, which is what two orders that disagree are; of two answers the row has none. soft: instead of a letter, p, the
    probability of each letter, the mean of both orders; within `tie` of a half it is a tie. Then scores are Bradley-Terry's utilities
    in nats, the least squares fit s_i = sum_j log(p_ij / p_ji) / K: of two answers sigmoid(s_1 - s_2) is p. reasons: the judge compares
    in words first. Rows in which no answer is better than another are left out.
    """
    laws = None if principles is None else read_principles(principles, ("comparison",), WHERE)
    way = _Way(sampling, soft, reasons, tie, verdict_tokens)
    return together(_chain(seed, way, tally, laws, answers, row_answers) for seed in seeds)


def check(
    *,
    temperature: float = 0.7,
    answers: int = 2,
    row_answers: bool = False,
    principles: list[Any] | str | None = None,
    **_: object,
) -> None:
    """InputError where the principles are none, or nothing is there to compare."""
    if principles is not None:
        read_principles(principles, ("comparison",), WHERE)
    if answers < 2 and not row_answers:
        raise InputError(
            f"synthesize: ai_feedback.answers is {answers}; a judge compares two at least, or row_answers: true adds the row's own."
        )
    if answers > 1 and temperature == 0:
        raise InputError(
            f"synthesize.temperature is 0, at which {answers} answers to one prompt are the same; 0.7 to 1 makes them differ."
        )


def calls(seeds: Sequence[Seed], *, answers: int = 2, **_: Any) -> int:
    """Return the most requests there will be to the model that writes."""
    return len(seeds) * answers


def quoted(seeds: Sequence[Seed], **_: Any) -> int:
    """Return how many answers stand in later requests to the model that writes: none."""
    return 0


def judged(
    seeds: Sequence[Seed],
    max_tokens: int,
    *,
    answers: int = 2,
    row_answers: bool = False,
    reasons: bool = False,
    verdict_tokens: int = 32,
    **_: Any,
) -> tuple[int, int, int]:
    """Return about the most that goes to the judge: (requests, tokens asked, tokens answered); four bytes count as a token."""
    some = seeds[:64]
    requests = asked = answered = 0.0
    for seed in some:
        turns = asked_turns(seed.record)
        if turns is None:
            continue
        own = own_answers(seed.record) if row_answers else []
        count = answers + len(own)
        said = answers * max_tokens + sum(len(text.encode()) for text in own) / 4
        orders = count * (count - 1)
        question = _FRAME + len(shown(turns).encode()) / 4 + 2 * said / max(count, 1)
        requests += orders * (1 + reasons)
        asked += orders * (question * (1 + reasons) + reasons * max_tokens)
        answered += orders * (verdict_tokens + reasons * max_tokens)
    scale = len(seeds) / max(len(some), 1)
    return round(requests * scale), round(asked * scale), round(answered * scale)


def replaces(record: Record, *, row_answers: bool = False, **_: Any) -> bool:
    """Say whether what is made of a row stands in its place: a preference whose own answers the judge ranks anew."""
    return row_answers and isinstance(record, Preference)


def _chain(
    seed: Seed, way: _Way, tally: _judge.Tally, laws: list[Principle] | None, answers: int, row_answers: bool
) -> Chain:
    turns = asked_turns(seed.record)
    if turns is None:
        return Refused("a seed without a prompt of text alone")
    found, why = yield from _answers(seed, way.sampling, turns, answers)
    if row_answers:
        found += [(text, "row") for text in own_answers(seed.record)]
    usable: dict[str, tuple[str, str]] = {}
    for text, whose in found:
        reason = unusable_unless_refusal(text)
        if reason is None and _judge.speaks_to_judge(text):
            reason = "an answer that speaks to the judge"
        if reason is None:
            usable.setdefault(" ".join(text.split()), (text, whose))
        why = reason or why
    if len(usable) < 2:
        return Refused(why or "answers that are alike")
    law = None if laws is None else laws[int(way.sampling.rng(seed.id).integers(len(laws)))]
    texts = [text for text, _ in usable.values()]
    own = [i for i, (_, whose) in enumerate(usable.values()) if whose == "row"] if _ranks(seed.record) else []
    asked = _Pairs(seed.id, shown(turns), texts, own, _judge.CRITERION if law is None else law.comparison)
    scores, verdicts, outcome = yield from _ranked(asked, way, tally)
    if min(scores) == max(scores):
        return Refused(outcome)
    best_first = sorted(range(len(texts)), key=lambda i: -scores[i])
    facts: dict[str, Any] = {} if law is None else {"principle": law.name}
    if row_answers:
        facts["answers"] = [[whose for _, whose in usable.values()][i] for i in best_first]
    facts["verdicts"] = [{**v, "answers": [best_first.index(i) for i in v["answers"]]} for v in verdicts]
    ranked = [[{"role": "assistant", "content": texts[i]}] for i in best_first]
    given = [scores[i] for i in best_first] if way.soft or len(texts) > 2 else None
    made = Preference(as_messages(turns), ranked, seed.record.origin, given, extra=category(seed.record))
    return Made(made, (seed.id,), facts)


def _ranks(record: Record) -> bool:
    """Say whether a row's own answers are in an order, without ties."""
    return isinstance(record, Preference) and len(set(record.scores or range(99))) >= len(record.answers)


def _answers(
    seed: Seed, sampling: Sampling, turns: tuple[tuple[str, str], ...], count: int
) -> Generator[Request, str, tuple[list[tuple[str, str]], str]]:
    """Return ([(an answer of the model's, "model")], why there is one less, if so)."""
    found, why = [], ""
    for n in range(count):
        try:
            found.append(((yield sampling.request(turns, seed.id, n)).strip(), "model"))
        except NoAnswer as none:
            why = str(none)
    return found, why


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Answers to one prompt that a judge compares by a criterion."""

    row: int
    prompt: str
    texts: list[str]
    own: list[int]  # places of those that the row ranks itself, the best first
    criterion: str


def _ranked(
    asked: _Pairs, way: _Way, tally: _judge.Tally
) -> Generator[Request, str, tuple[list[float], list[dict[str, Any]], str]]:
    """Ask about every pair in both orders; return (each answer's score, the verdicts, how a pair that has no winner came out)."""
    count = len(asked.texts)
    scores, verdicts, number = [0.0] * count, [], _JUDGING
    outcome = _judge.OUTCOMES[3]
    for i, j in combinations(range(count), 2):
        closing = _judge.WEIGH if way.reasons else _closing(way)
        both = _judge.questions(asked.prompt, asked.texts[i], asked.texts[j], asked.criterion, closing)
        first, why = yield from _verdict(both[0], way, asked.row, number)
        swapped, also = yield from _verdict(both[1], way, asked.row, number + 2)
        number += 4
        came_out = tally.add(first, swapped)
        wins = _judge.averaged(first, swapped, way.tie) if way.soft else _judge.agreed(first, swapped)
        if wins is None:
            outcome, wins = f"{came_out}, {why or also}", 0.5
        elif wins == 0.5:
            outcome = came_out if came_out != _judge.OUTCOMES[0] else _judge.OUTCOMES[3]
        else:
            better, worse = (i, j) if wins > 0.5 else (j, i)
            ranked = wins > 0.5 if i in asked.own and j in asked.own else None
            tally.decided(asked.texts[better], asked.texts[worse], ranked)
        if way.soft:
            scores[i] += log_odds(wins) / count
            scores[j] -= log_odds(wins) / count
        else:
            scores[i] += wins / (count - 1)
            scores[j] += (1.0 - wins) / (count - 1)
        told = (first, swapped) if way.soft else (_LETTERS[first], _LETTERS[swapped])
        verdicts.append({"answers": [i, j], "first": told[0], "swapped": told[1]})
    return [round(score, 4) for score in scores], verdicts, f"a pair without a better answer: {outcome}"


def log_odds(p: float) -> float:
    """Return log(p / (1 - p)), of p between 0.001 and 0.999: a judge that is surer than that is not to be believed."""
    p = min(max(p, 0.001), 0.999)
    return math.log(p / (1 - p))


def _closing(way: _Way) -> str:
    return _judge.LETTER if way.soft else _judge.LETTER_OR_TIE


def _verdict(question: str, way: _Way, row: int, number: int) -> Asked:
    """Ask the judge one question; return (how much it prefers the answer shown first, None without a verdict; why there is none)."""
    messages: tuple[tuple[str, str], ...] = (("user", question),)
    try:
        if way.reasons:
            weighed = yield replace(way.sampling.request(messages, row, number), temperature=0.0, judge=True)
            messages = (*messages, ("assistant", weighed.strip()), ("user", _closing(way)))
        request = way.sampling.request(messages, row, number + 1)
        request = replace(request, max_tokens=way.verdict_tokens, temperature=0.0, judge=True)
        if way.soft:
            return round(_judge.preferred(json.loads((yield replace(request, choices=_judge.LETTERS)))), 4), ""
        value = _judge.read((yield request))
        return value, "a reply that names no answer" if value is None else ""
    except NoAnswer as none:
        return None, str(none)
