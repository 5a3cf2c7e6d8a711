"""Anchored preference optimization: says of each answer whether it is to become likelier (D'Oosterlinck et al., 2024, arXiv 2408.06266).

    zero (eq. 7):  1 - sigmoid(r_chosen) + sigmoid(r_rejected)                    r = beta log(p / p_reference)
    down (eq. 8):  sigmoid(r_chosen) + 1 - sigmoid(r_chosen - r_rejected)

zero: the chosen answers are better than the model's own, and become likelier. down: they are worse, and become less likely, the rejected
ones more so.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Preference
from tunesmith.training.objectives._answers import Pairs

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = True


def loss(
    pairs: Pairs, *, beta: Annotated[float, Field(gt=0)] = 0.1, variant: Literal["zero", "down"] = "zero"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,), from 0 to 2, and the rewards r of their chosen and rejected answers, (P,) each, in nats."""
    chosen, rejected = beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
    if variant == "zero":
        return (-chosen).sigmoid() + rejected.sigmoid(), chosen, rejected
    return chosen.sigmoid() + (rejected - chosen).sigmoid(), chosen, rejected
