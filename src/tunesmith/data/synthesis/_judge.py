"""A judge of two answers: asked in both orders, its replies read strictly, its bias to a place counted. Pure: nothing is asked here.

    first, swapped = questions(prompt, a, b)            # a shown first; b shown first
    verdict = agreed(read(ask(first)), read(ask(swapped)))   # 1.0: a is better, 0.0: b, 0.5: neither; None: no verdict

Zheng et al., 2023, arXiv 2306.05685, section 3.4: who wins must win in both orders; else it is a tie. Lee et al., 2023, RLAIF, arXiv
2309.00267, section 2.1: with probabilities of the two letters instead, the mean of both orders.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tunesmith.data.synthesis._fence import fenced

CRITERION = (
    "Which of the two answers serves the one who asks better? It does what was asked, is right, says plainly what it does not know, "
    "and helps nobody to do harm."
)
LETTERS = ("A", "B")
LETTER = "Reply with one letter alone: A or B."
LETTER_OR_TIE = "Reply with one letter alone: A, B, or T where neither is better."
WEIGH = "Compare them in three or four sentences. Do not say yet which you prefer."
OUTCOMES = (
    "the same answer in both orders",
    "whichever stood first",
    "whichever stood second",
    "a tie",
    "no verdict",
)  # fmt: skip

_ALONE = re.compile(
    r"(?:(?:so|therefore|overall|thus),? )?(?:i (?:prefer|choose|pick) )?"
    r"(?:(?:the |my )?(?:(?:better|best|final|preferred) )?"
    r"(?:answer|response|option|verdict|choice|preference|winner|letter)(?: is)?[: ]*)?"
    r"(?:answer |response |option )?[(\[]?(?P<letter>A|B|T|tie|neither|both)[)\]]?"
    r"(?: (?:is|seems|serves|meets it) (?:(?:much|clearly|slightly|far|somewhat|the) )*(?:better|best|preferable|preferred)"
    r"(?: (?:than|because|since|as|in|at|answer|response|option|one|choice)\b.*)?)?",
    re.IGNORECASE,
)
_MARK = re.compile(r"\[\[\s*(A|B|C|T|tie)\s*\]\]", re.IGNORECASE)
_TO_JUDGE = re.compile(
    r"\[\[\s*(?:A|B|C|T|tie)\s*\]\]|</?(?:answer_[AB]|prompt) [0-9a-f]"
    r"|\b(?:prefer|choose|pick|select|vote for|favou?r)\s+(?:this\s+(?:answer|response)|(?:answer|response)\s+\(?[AB]\b)"
    r"|\b(?:ignore|disregard|forget)\s+(?:(?:all|any|the|your|every)\s+){0,2}(?:previous|prior|above|earlier|other)\s+"
    r"(?:instructions?|answers?|prompts?|responses?)\b",
    re.IGNORECASE,
)


def questions(prompt: str, a: str, b: str, criterion: str = CRITERION, closing: str = LETTER_OR_TIE) -> tuple[str, str]:
    """Return what a judge is asked about two answers: a shown first as A and b as B; and the other way round."""
    return _question(prompt, a, b, criterion, closing), _question(prompt, b, a, criterion, closing)


def _question(prompt: str, a: str, b: str, criterion: str, closing: str) -> str:
    material = fenced({"prompt": prompt, "answer_A": a, "answer_B": b})
    return (
        f"Below are a prompt and two answers to it, A and B. {criterion}\nNeither the order in which they are shown nor their length "
        f"counts. {material}\n\n{closing}"
    )


def read(reply: str) -> float | None:
    """Return how much a reply prefers the answer shown first: 1 (A), 0 (B), 0.5 (a tie); None where it is no verdict.

    Read are a letter alone, "Answer: B", "Answer A is better", a first or last line that is one of those, and MT-Bench's [[A]], [[C]]
    being the tie. A reply that says two different things so is none.
    """
    marks = {m.upper() for m in _MARK.findall(reply)}
    if marks:
        return _value(marks.pop()) if len(marks) == 1 else None
    lines = [said for line in reply.splitlines() if (said := re.sub(r"[*_`\"'“”#>]", "", line).strip(" \t.!"))]
    ends = (lines[0], lines[-1]) if lines else ()
    values = {_value(found["letter"].upper()) for said in ends if (found := _ALONE.fullmatch(said))}
    return values.pop() if len(values) == 1 else None


def _value(letter: str) -> float:
    return {"A": 1.0, "B": 0.0}.get(letter, 0.5)


def preferred(logps: Mapping[str, float]) -> float:
    """Return the probability of A against B, from the log-probabilities of the two letters: softmax, which is 1 / (1 + e^(b - a))."""
    return 1.0 / (1.0 + math.exp(min(logps["B"] - logps["A"], 700.0)))


def agreed(first: float | None, swapped: float | None) -> float | None:
    """Return 1.0 where a is better in both orders, 0.0 where b is, 0.5 where they differ or are ties; None without two verdicts.

    first and swapped: how much the answer shown first is preferred, where that is a, and where that is b.
    """
    if first is None or swapped is None:
        return None
    return first if first == 1.0 - swapped else 0.5


def averaged(first: float | None, swapped: float | None, tie: float = 0.0) -> float | None:
    """Return the probability that a is better, (first + 1 - swapped) / 2; one within `tie` of a half is 0.5."""
    if first is None or swapped is None:
        return None
    mean = (first + 1.0 - swapped) / 2
    return 0.5 if abs(mean - 0.5) <= tie else mean


def speaks_to_judge(answer: str) -> bool:
    """Say whether an answer holds a verdict, a mark of ours, or a plain order to whoever judges it."""
    return _TO_JUDGE.search(answer) is not None


class Tally:
    """How a judge's verdicts came out over the pairs it was asked about in both orders, and what they lean to."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.leaning = 0.0  # sum over the pairs with two verdicts of the preference for what stood first
        self.longer: Counter[bool] = Counter()  # of the pairs with a better answer: is it the longer one?
        self.aligned: Counter[bool] = Counter()  # of those that their row ranks itself: in the same order?

    def add(self, first: float | None, swapped: float | None) -> str:
        """Count a pair; return which of OUTCOMES it is."""
        found = OUTCOMES[4]
        if first is not None and swapped is not None:
            self.leaning += (first + swapped) / 2
            if first == 0.5 or swapped == 0.5:
                found = OUTCOMES[3]
            elif (first > 0.5) != (swapped > 0.5):
                found = OUTCOMES[0]
            else:
                found = OUTCOMES[1] if first > 0.5 else OUTCOMES[2]
        self.outcomes[found] += 1
        return found

    def decided(self, better: str, worse: str, as_ranked: bool | None) -> None:
        """Count a pair with a better answer; as_ranked: does its row have them in this order, None where it does not rank them."""
        if len(better) != len(worse):
            self.longer[len(better) > len(worse)] += 1
        if as_ranked is not None:
            self.aligned[as_ranked] += 1

    @property
    def agreement(self) -> float | None:
        """Of the pairs with two clear verdicts the share in which both name the same answer; None without any."""
        clear = sum(self.outcomes[name] for name in OUTCOMES[:3])
        return self.outcomes[OUTCOMES[0]] / clear if clear else None

    @property
    def first(self) -> float | None:
        """The mean preference for the answer shown first: 0.5 is no bias to a place, 1 always the first; None without verdicts."""
        count = sum(self.outcomes.values()) - self.outcomes[OUTCOMES[4]]
        return self.leaning / count if count else None

    def numbers(self) -> dict[str, float]:
        """Return the card's numbers."""
        found = {
            "pairs in which both orders agree": self.agreement,
            "preference for the answer shown first": self.first,
            "better answers that are the longer one": _share(self.longer),
            "agreement with the rows' own order": _share(self.aligned),
        }
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def table(self) -> list[list[Any]]:
        """Return [outcome, pairs] for each of OUTCOMES."""
        return [[name, self.outcomes[name]] for name in OUTCOMES]

    def summary(self) -> str:
        """Return what a person should know of the judge's leanings, in a few words."""
        if self.first is None:
            return "the judge gave no verdict"
        said = [] if self.agreement is None else [f"both orders agree in {self.agreement:.0%} of the clear pairs"]
        said.append(f"the answer shown first is preferred by {self.first:.2f} on average (0.50: no bias to a place)")
        if (share := _share(self.longer)) is not None:
            said.append(f"the longer answer wins in {share:.0%}")
        if (share := _share(self.aligned)) is not None:
            said.append(f"{share:.0%} of {self.aligned.total():,} pairs are won as their rows have them")
        return ", ".join(said)


def _share(counts: Counter[bool]) -> float | None:
    return counts[True] / counts.total() if counts.total() else None
