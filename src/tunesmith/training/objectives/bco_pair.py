"""Binary classifier optimization of pairs, without the shift that the verdicts' form has (Jung et al., 2024, arXiv 2404.04656).

    -log sigmoid(r_chosen) - log sigmoid(-r_rejected)        r = beta log(p / p_reference)

An upper bound of DPO's loss. It is TRL's bco_pair, and the quality loss of mixed preference optimization (Wang et al., 2024, arXiv
2411.10442); `bco` reads verdicts and measures rewards from their mean.
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
    return -logsigmoid(chosen) - logsigmoid(-rejected), chosen, rejected
