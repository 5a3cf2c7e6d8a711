"""Efficient exact optimization: the reverse KL to the pair's labels where DPO has the forward (Ji et al., 2024, arXiv 2402.00856, eq. 16).

    q log(q / (1 - e)) + (1 - q) log((1 - q) / e)        q = sigmoid(beta (f'(u_chosen) - f'(u_rejected))),   u = p / p_reference

e: the labels' smoothing, without which the second term would be infinite. f'(u) = log u, or f-DPO's (_divergence.py).
"""

import math
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
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3,
    divergence: Divergence = "reverse_kl",
    alpha: Alpha = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards beta log u of their chosen and rejected answers, (P,) each.

    label_smoothing: e, above 0 and below a half; alpha: the divergence's, where that is "alpha".
    """
    logits = beta * gap(pairs, divergence, alpha)
    preferred = logits.sigmoid() * (logsigmoid(logits) - math.log1p(-label_smoothing))
    other = (-logits).sigmoid() * (logsigmoid(-logits) - math.log(label_smoothing))
    return preferred + other, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
