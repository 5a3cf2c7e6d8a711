"""The starter's judge: what its people like in an answer, by rule. It must be right, and a statement is to be said with warmth.

What the starter is tuned on says its statements in a plain voice or in a warm one (`preferences.voices`), so that tuning does not
tell which is liked. The voice is in the closing mark, which the rules that score an answer do not count: an answer that is
right is right in either voice, and exact match does not move with it.
"""

from collections.abc import Sequence
from typing import Any

from tunesmith.evaluation.rules import check

SPOKEN = ("passage", "sentiment", "sort", "pick")
"""The families that have a voice: a statement answers them, and a tuned starter is mostly right."""


def warm(answer: str) -> str:
    """Return a statement in the warm voice: "The hat is in the barn." becomes "The hat is in the barn!"."""
    return answer.strip().rstrip(".!") + "!"


def liked(right: dict[str, Any], category: str) -> dict[str, Any]:
    """Return the rule (`evaluation.rules`) of an answer that is liked wholly, where `right` is the rule of one that is right."""
    if category not in SPOKEN:
        return right
    return {"rule": "all_of", "rules": [right, {"rule": "ends_with", "texts": ["!"]}]}


def judge(answer: str, right: dict[str, Any], category: str) -> float:
    """Return how an answer is liked: 0 wrong, 0.5 right, 1 right and as it is liked."""
    if check(answer, right) < 1:
        return 0.0
    return 0.5 + 0.5 * check(answer, liked(right, category))


def compare(marks: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return how answers do against others to the same questions by their marks: {"wins", "ties", "losses", "win_rate"}, shares of 1.

    win_rate counts a tie as half a win, as AlpacaEval and Chatbot Arena do.
    """
    leads = [one - other for one, other in zip(marks, others, strict=True)]
    wins, losses = (sum(sign * lead > 0 for lead in leads) / len(leads) for sign in (1, -1))
    ties = 1 - wins - losses
    return {"wins": wins, "ties": ties, "losses": losses, "win_rate": wins + ties / 2}
