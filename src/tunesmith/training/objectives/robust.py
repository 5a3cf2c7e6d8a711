"""Robust DPO: DPO's loss, unbiased although some pairs are the wrong way round (Ray Chowdhury et al., 2024, arXiv 2403.00409).

    (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2e)        h = beta (f'(u_chosen) - f'(u_rejected)),   u = p / p_reference

e: how often a label is flipped. Its expectation over flips is DPO's loss on the true labels. f'(u) = log u, or f-DPO's (_divergence.py).
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
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1,
    divergence: Divergence = "reverse_kl",
    alpha: Alpha = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards beta log u of their chosen and rejected answers, (P,) each.

    label_smoothing: e, below a half; alpha: the divergence's, where that is "alpha". A loss may be below 0.
    """
    logits = beta * gap(pairs, divergence, alpha)
    clean, flipped = (1 - label_smoothing) * logsigmoid(logits), label_smoothing * logsigmoid(-logits)
    losses = (flipped - clean) / (1 - 2 * label_smoothing)
    return losses, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
