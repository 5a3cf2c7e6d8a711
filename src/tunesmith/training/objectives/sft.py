"""Supervised fine-tuning: the negative log-likelihood of the answers' tokens, -sum_t log p(y_t | x, y_<t) (Ouyang et al., 2022)."""

from torch import Tensor

from tunesmith.data.records import Chat

reads = (Chat,)
scores = "answers"


def loss(logps: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over targets of -weight * logp, in nats, (); the loop divides by the step's sum of weights."""
    return -(logps * weights).sum()
