"""Contrastive preference optimization: DPO without a reference, beside the chosen answers' likelihood (Xu et al., 2024, arXiv 2401.08417).

    -(1 - e) log sigmoid(h) - e log sigmoid(-h)        h = beta (log p(chosen) - log p(rejected))

The paper's first term with e = 0; its second, the mean -log p of the chosen answers' tokens, is the option `sft`, 1 unless it is stated.
e: labels are wrong this often. What other tools call CPO with hinge or IPO loss is `hinge` or `ipo` with reference: none and sft: 1.
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
reference = False
sft = 1.0


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards beta log p of their chosen and rejected answers, (P,) each."""
    chosen, rejected = beta * pairs.chosen.logps, beta * pairs.rejected.logps
    logits = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    return losses, chosen, rejected
