"""How much good and bad verdicts count, where the data has more of one kind than of the other."""

import math
from typing import Any

from tunesmith.config import RunConfig
from tunesmith.data.records import Examples
from tunesmith.training.batch import Indices
from tunesmith.training.infer import Inferred

GOOD, BAD = "desirable_weight", "undesirable_weight"


def counted(examples: Examples, rows: Indices) -> tuple[int, int]:
    """Return how many of the verdicts `rows` are good and how many bad."""
    assert examples.groups is not None
    assert examples.values is not None
    good = int((examples.values[examples.groups[rows]] > 0).sum())
    return good, len(rows) - good


def infer_weights(config: RunConfig, module: Any, good: int, bad: int) -> tuple[list[Inferred], list[str]]:
    """Return the weight of the rarer label, so that the good answers' weights together are module.balance (least, most) times the
    bad ones', and notices. A weight the user states is left alone, and what it comes to is said where that lies outside.
    """
    least, most = module.balance
    stated = {key: config.objective[key] for key in (GOOD, BAD) if key in config.objective}
    ratio = stated.get(GOOD, 1.0) * good / max(stated.get(BAD, 1.0) * bad, 1e-12)
    if least - 1e-3 <= ratio <= most + 1e-3 or not good or not bad:
        return [], []
    wanted = f"{least:g}" if least == most else f"{least:g} to {most:.2f}"
    said = f"{good:,} good and {bad:,} bad answers"
    if stated:
        name = config.objective["name"]
        return [], [
            f"with {said} the good ones count {ratio:.2f} times what the bad ones do; for {name} {wanted} is advised"
        ]
    key, value = (GOOD, least / ratio) if ratio < least else (BAD, ratio / most)
    value = math.ceil(1000 * value - 1e-6) / 1000
    why = f"{said} an epoch: the good ones together should count {wanted} times the bad ones"
    return [Inferred(f"objective.{key}", value, why)], []
