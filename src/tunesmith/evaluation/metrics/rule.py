"""Rule: the share of answers that keep the rule stated in their row's field `check`; exact match for rows without."""

from tunesmith.evaluation.items import Item, visible
from tunesmith.evaluation.metrics import exact_match
from tunesmith.evaluation.metrics.exact_match import aggregate

__all__ = ["NEEDS", "aggregate", "score"]

NEEDS = "answers"


def score(item: Item) -> tuple[float, float] | None:
    """Return (how well the answer keeps its row's rule, 0 to 1; 1); None for a row with neither rule nor reference."""
    from tunesmith.evaluation.rules import check

    rule = item.record.extra.get("check")
    if rule is None:
        return exact_match.score(item)
    return float(check(visible(item.answer or ""), rule)), 1.0
