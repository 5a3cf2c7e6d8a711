"""Odds ratio preference optimization: fine-tuning on the chosen answers and preferring them, in one (Hong et al., 2024, arXiv 2403.07691).

    -beta log sigmoid(log odds(chosen) - log odds(rejected))        odds = p / (1 - p),   log p = 1/|y| log p(y | x)

Eq. 7, times the paper's lambda (beta here, as in other tools); the mean -log p of the chosen answers' tokens beside it (eq. 6) is the
option `sft`, 1 unless it is stated. (The authors' programs, and TRL's, take the prompts' tokens into it too; the paper does not.)
"""

from typing import Annotated

import torch
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
RATE = 0.3  # of SFT's learning rate: it is SFT too, often of a base model, which holds what a larger step would undo


def loss(pairs: Pairs, *, beta: Annotated[float, Field(gt=0)] = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,) in nats, and the rewards, beta times the mean log p of their tokens, (P,) each."""
    chosen, rejected = (side.logps / side.lengths for side in (pairs.chosen, pairs.rejected))
    losses = -beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return losses, beta * chosen, beta * rejected


def _log_odds(means: Tensor) -> Tensor:
    means = means.clamp(max=-torch.finfo(means.dtype).tiny)  # an answer that is certain has no odds, nor a gradient
    return means - torch.log(-torch.expm1(means))
