"""Anchored preference optimization of verdicts: KTO measured from the reference itself (D'Oosterlinck et al., 2024, arXiv 2408.06266).

    w_good (1 - sigmoid(beta log u))        of an answer found good        u = p / p_reference
    w_bad  sigmoid(beta log u)              of one found bad

The paper's eq. 7 (`apo`), taken apart into its two answers; `kto` with z = 0. It needs no mismatched answers, so a step costs one pass
instead of one and a third, and every row may have the same prompt.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Verdict
from tunesmith.training.objectives._answers import Verdicts
from tunesmith.training.objectives._verdicts import Weight, signed, weighted

reads = (Verdict,)
scores = "answers"
compares = "verdicts"
reference = True
balance = (1.0, 4 / 3)  # as KTO's


def loss(
    verdicts: Verdicts,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    desirable_weight: Weight = 1.0,
    undesirable_weight: Weight = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the answers (A,), from 0 to their weight, and their rewards beta log u, (A,), in nats."""
    ratios, good = verdicts.answers.ratios, verdicts.good
    losses = (-beta * signed(ratios, good)).sigmoid()
    return losses * weighted(good, losses, desirable_weight, undesirable_weight), beta * ratios
