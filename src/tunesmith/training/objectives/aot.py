"""Alignment via optimal transport: the good rewards above the bad ones as distributions (Melnyk et al., 2024, arXiv 2406.05882).

    -(1 - e) log sigmoid(h_(i)) - e log sigmoid(-h_(i))        i: the i-th smallest of the step's pairs on either side

paired:      h_(i) = beta (sorted log(p_chosen / p_rejected) - the same of the reference, sorted by itself)
not paired:  h_(i) = beta (sorted log u_chosen - sorted log u_rejected),   u = p / p_reference

The sorting is over the whole step, so the loss is one of the step and not of its pairs; e: labels are wrong this often.
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
whole_step = True


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    paired: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses (P,) in nats of all the step's pairs, and the rewards beta log u of their chosen and rejected answers, (P,) each.

    A loss stands where the pair is whose better side (paired: whose difference) it compares.
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    better, worse = chosen.ratios, rejected.ratios
    if paired:
        better, worse = chosen.logps - rejected.logps, chosen.reference - rejected.reference
    order = better.argsort(stable=True)
    logits = beta * (better - worse.sort().values[order.argsort()])
    losses = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return losses, beta * chosen.ratios, beta * rejected.ratios
