"""DiscoPOP: a loss that a language model found, logistic and exponential in turn (Lu et al., 2024, arXiv 2406.08414, eq. 5: LRML).

    -(1 - s) log sigmoid(h) + s exp(-h)        s = sigmoid(h / tau),   h = beta (f'(u_chosen) - f'(u_rejected)),   u = p / p_reference

It rises between about -2.4 tau and 1.4 tau: a pair that is nearly undecided is left so. f'(u) = log u, or f-DPO's (_divergence.py).
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.records import Preference
from tunesmith.training.objectives import _divergence
from tunesmith.training.objectives._answers import Pairs
from tunesmith.training.objectives._divergence import Alpha, Divergence, gap

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = True
check = _divergence.check


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    tau: Annotated[float, Field(gt=0)] = 0.05,
    divergence: Divergence = "reverse_kl",
    alpha: Alpha = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,), and the rewards beta log u of their chosen and rejected answers, (P,) each, in nats.

    alpha: the divergence's, where that is "alpha".
    """
    logits = beta * gap(pairs, divergence, alpha)
    logistic = -logsigmoid(logits) * (-logits / tau).sigmoid()
    exponential = (logsigmoid(logits / tau) - logits).exp()  # exp(-h) by itself overflows where s is 0
    return logistic + exponential, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
