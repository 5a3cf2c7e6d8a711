"""Exact match: the share of answers equal to their reference.

Equal means equal after white space is normalised (ends stripped, runs made one space). Case counts, unless ignore_case.
A reasoning block that opens an answer is left out.
"""

from typing import Any

import numpy as np

from tunesmith.evaluation.items import Item, visible
from tunesmith.evaluation.statistics import Floats, mean_interval

NEEDS = "answers"


def score(item: Item, *, ignore_case: bool = False) -> tuple[float, float] | None:
    """Return (1 or 0, 1); None for a row without a reference."""
    if item.reference is None:
        return None
    answer, reference = normalise(visible(item.answer or "")), normalise(visible(item.reference))
    if ignore_case:
        answer, reference = answer.casefold(), reference.casefold()
    return float(answer == reference), 1.0


def normalise(text: str) -> str:
    """Return the text with ends stripped and every run of white space made one space."""
    return " ".join(text.split())


def aggregate(values: Floats, weights: Floats) -> dict[str, Any]:
    """Return {"value", "n", "low", "high"}: the mean over rows and Wilson's interval."""
    low, high = mean_interval(values)
    return {"value": float(np.mean(values)), "n": len(values), "low": low, "high": high}
