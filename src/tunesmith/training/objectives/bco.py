"""Binary classifier optimization: good and bad answers told apart by their rewards (Jung et al., 2024, arXiv 2404.04656).

    -w_good log sigmoid(r - delta)        of an answer found good        r = beta log(p / p_reference)
    -w_bad  log sigmoid(delta - r)        of one found bad

delta = (mean r of the good + mean r of the bad) / 2 is the paper's reward shift, without a gradient. The step's own: a moving average,
as the authors take, would be a state that depends on the steps before. In a step of one label alone it is that label's mean.
The paper averages either label for itself, so that both count the same: a run that states no weight gets them so.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.data.records import Verdict
from tunesmith.training.objectives._answers import Side, Verdicts
from tunesmith.training.objectives._verdicts import Weight, signed, weighted

reads = (Verdict,)
scores = "answers"
compares = "verdicts"
reference = True
balance = (1.0, 1.0)
mismatched = False


def baseline(verdicts: Verdicts, mismatched: Side) -> Tensor:
    """Return delta / beta, (), in nats, of the step's own answers; 0 of none."""
    ratios, good = verdicts.answers.ratios.detach(), verdicts.good
    counts = torch.stack([good.sum(), (~good).sum()])
    sums = torch.stack([ratios.where(which, 0.0).sum() for which in (good, ~good)])
    return (sums / counts.clamp(min=1)).sum() / counts.clamp(max=1).sum().clamp(min=1)


def loss(
    verdicts: Verdicts,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    desirable_weight: Weight = 1.0,
    undesirable_weight: Weight = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the answers (A,) in nats, and their rewards r, (A,)."""
    ratios, good = verdicts.answers.ratios, verdicts.good
    losses = -logsigmoid(beta * signed(ratios - verdicts.baseline, good))
    return losses * weighted(good, losses, desirable_weight, undesirable_weight), beta * ratios
