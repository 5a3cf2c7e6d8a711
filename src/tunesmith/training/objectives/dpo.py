"""Direct preference optimization: the pair as a classification of which answer was preferred (Rafailov et al., 2023, arXiv 2305.18290).

    -(1 - e) log sigmoid(h) - e log sigmoid(-h)        h = beta (f'(u_chosen) - f'(u_rejected)) - offset,   u = p / p_reference

Eq. 7, where f'(u) = log u and e = offset = 0. e: labels are wrong this often, conservative DPO (Mitchell, 2023). Length-normalised: f'(u)
of an answer divided by its tokens (Lambert et al., 2024, arXiv 2411.15124; TRL's sigmoid_norm). Offset: ODPO (Amini et al., 2024, arXiv
2402.10571): a pair whose scores differ by s is to be margin log s apart; one without scores has none. f: f-DPO (_divergence.py).
"""

from typing import Annotated

import torch
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
needs_scores = ("margin",)  # options that do nothing to rows without


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    length_normalised: bool = False,
    margin: Annotated[float, Field(ge=0)] = 0.0,
    divergence: Divergence = "reverse_kl",
    alpha: Alpha = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards beta log u of their chosen and rejected answers, (P,) each.

    margin: ODPO's alpha, 0 for none; alpha: the divergence's, where that is "alpha".
    """
    logits = beta * gap(pairs, divergence, alpha, per_token=length_normalised)
    if margin:
        scored = pairs.margins > 0
        logits = logits - margin * torch.where(scored, pairs.margins, 1.0).log()
    losses = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return losses, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
