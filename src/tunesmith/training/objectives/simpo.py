"""Simple preference optimization: tokens' mean log-prob is the reward, and a margin is asked (Meng et al., 2024, arXiv 2405.14734).

    -(1 - e) log sigmoid(h) - e log sigmoid(-h)        h = r_chosen - r_rejected - gamma,   r = beta m,   m = 1/|y| log p(y | x)

Eq. 6 with e = 0; gamma is stated as gamma / beta, as the authors' programs and tables have it. e: labels are wrong this often.
alpha: AlphaPO (Gupta et al., 2025, arXiv 2501.03884), r = beta (1 - exp(-alpha m)) / alpha, whose limit at alpha = 0 is SimPO's; the
larger alpha, the less the chosen answers' likelihood falls. With the option `sft` it is CPO-SimPO.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, expm1
from torch.nn.functional import logsigmoid

from tunesmith.data.records import Preference
from tunesmith.training.objectives._answers import Pairs, Side

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = False


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 2.0,
    gamma_beta_ratio: Annotated[float, Field(ge=0)] = 0.5,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    alpha: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards r of their chosen and rejected answers, (P,) each."""
    chosen, rejected = (beta * _shaped(side, alpha) for side in (pairs.chosen, pairs.rejected))
    logits = chosen - rejected - beta * gamma_beta_ratio
    losses = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return losses, chosen, rejected


def _shaped(side: Side, alpha: float) -> Tensor:
    means = side.logps / side.lengths
    return -expm1(-alpha * means) / alpha if alpha else means
