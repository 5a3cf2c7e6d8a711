"""Reward modelling: the score of the better answer is to be the higher one (Bradley & Terry, 1952; Ouyang et al., 2022, arXiv 2203.02155).

    -log sigmoid(r_chosen - r_rejected - m s) + c (r_chosen + r_rejected)^2

A list of K answers makes its K (K - 1) / 2 pairs, which count as one row (Ouyang et al., eq. 1). m: a pair whose scores in the data differ
by s is to be m s apart (Llama 2, Touvron et al., 2023, arXiv 2307.09288, eq. 2). c: scores are held near 0, which pairs leave free
(Eisenstein et al., 2023, arXiv 2312.09244, sec. 2; TRL's center_rewards_coefficient, 0.01 there). Of several attributes each has a score
of its own, and a pair is the mean over those that the row compares; a row that compares none of them compares their weighted sum.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.records import Preference
from tunesmith.training.objectives._scores import ScorePairs

reads = (Preference,)
scores = "last"
compares = "pairs"
model = "reward"
needs_scores = ("margin",)  # options that do nothing to rows without
RATE = 1.0  # of SFT's learning rate: what is learnt is new, there is nothing that a large step would undo


def loss(
    scores: ScorePairs, *, margin: Annotated[float, Field(ge=0)] = 0.0, center: Annotated[float, Field(ge=0)] = 0.0
) -> Tensor:
    """Return the losses of the pairs (P,), in nats; one of which the data says nothing has 0."""
    chosen, rejected, sign, margins = scores
    each = -logsigmoid(sign * (chosen - rejected) - margin * margins) + center * (chosen + rejected) ** 2
    said = sign != 0
    return each.where(said, 0.0).sum(1) / said.sum(1).clamp(min=1)
