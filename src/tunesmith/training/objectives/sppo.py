"""Self-play preference optimization: each log-ratio goes to what its chance to win says (Wu et al., 2024, arXiv 2405.00675, eq. 4.7).

    (log u_chosen - (w - 1/2) / beta)^2 + (log u_rejected + (w - 1/2) / beta)^2        u = p / p_reference; beta is the paper's 1 / eta

w: the chance that the chosen answer wins. 1 for hard labels; soft: sigmoid(s), s the difference of the answers' scores in the data, which
have to be log-odds, as PairRM's and reward models' are. (The paper's own programs take half of the sum.)
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Preference
from tunesmith.training.objectives._answers import Pairs

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = True
needs_scores = ("soft",)  # options that do nothing to rows without


def loss(
    pairs: Pairs, *, beta: Annotated[float, Field(gt=0)] = 0.1, soft: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,), and the rewards beta log u of their chosen and rejected answers, (P,) each, in nats.

    soft: w by the scores of the pairs that have them.
    """
    chosen, rejected = pairs.chosen.ratios, pairs.rejected.ratios
    wins = torch.ones_like(chosen)
    if soft:
        wins = torch.where(pairs.margins > 0, pairs.margins.sigmoid(), wins)
    goal = (wins - 0.5) / beta
    return (chosen - goal) ** 2 + (rejected + goal) ** 2, beta * chosen, beta * rejected
