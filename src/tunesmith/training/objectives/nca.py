"""Noise contrastive alignment: each reward by itself, so that the chosen one's does not fall (Chen et al., 2024, arXiv 2402.05369).

    -log sigmoid(r_chosen) - 1/2 log sigmoid(-r_chosen) - 1/2 log sigmoid(-r_rejected)        r = beta log(p / p_reference)

The form for pairs, of K = 2 answers.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.records import Preference
from tunesmith.training.objectives._answers import Pairs

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = True


def loss(pairs: Pairs, *, beta: Annotated[float, Field(gt=0)] = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards r of their chosen and rejected answers, (P,) each."""
    chosen, rejected = beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
    losses = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return losses, chosen, rejected
