"""Kahneman-Tversky optimization: gains and losses against what the policy has drifted anyway (Ethayarajh et al., 2024, arXiv 2402.01306).

    w_good (1 - sigmoid(beta (log u - z)))        of an answer found good        u = p / p_reference
    w_bad  (1 - sigmoid(beta (z - log u)))        of one found bad

z = max(0, mean log u) over the step's mismatched answers, each another row's answer to a row's prompt: an estimate of
KL(p || p_reference), which has no gradient. The paper has it of a micro-batch; here it is the whole step's, so that neither memory nor
processes change it. w_good n_good / (w_bad n_bad) should be 1 to 4/3 (section 4.2): a run that states no weight gets them so.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Verdict
from tunesmith.training.objectives._answers import Side, Verdicts
from tunesmith.training.objectives._verdicts import Weight, signed, weighted

reads = (Verdict,)
scores = "answers"
compares = "verdicts"
reference = True
balance = (1.0, 4 / 3)  # section 4.2
mismatched = True


def baseline(verdicts: Verdicts, mismatched: Side) -> Tensor:
    """Return z, (), in nats, of the step's mismatched answers; 0 of none."""
    ratios = mismatched.ratios.detach()
    return ratios.sum().clamp(min=0) / max(len(ratios), 1)


def loss(
    verdicts: Verdicts,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    desirable_weight: Weight = 1.0,
    undesirable_weight: Weight = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the answers (A,), from 0 to their weight, and their rewards beta log u, (A,), in nats."""
    ratios, good = verdicts.answers.ratios, verdicts.good
    losses = (-beta * signed(ratios - verdicts.baseline, good)).sigmoid()
    return losses * weighted(good, losses, desirable_weight, undesirable_weight), beta * ratios
