"""Perplexity over scored tokens, weighted by token: exp(sum of -log p / number of scored tokens) over all rows.

The interval resamples rows (bootstrap), for the tokens of a row are no independent draws.
"""

import math
from typing import Any

from tunesmith.evaluation.items import Item
from tunesmith.evaluation.statistics import Floats, bootstrap_ratios, percentile_interval

NEEDS = "logps"


def score(item: Item) -> tuple[float, float] | None:
    """Return (summed -log p in nats, scored tokens) of a row; None where nothing is scored."""
    return (item.nll, float(item.tokens)) if item.tokens else None


def aggregate(values: Floats, weights: Floats) -> dict[str, Any]:
    """Return {"value", "n", "low", "high"}; n counts rows."""
    low, high = percentile_interval(bootstrap_ratios(values, weights))
    mean = float(values.sum() / weights.sum())
    return {"value": _exp(mean), "n": len(values), "low": _exp(low), "high": _exp(high)}


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))  # a model gone mad has no perplexity beyond what a float holds
