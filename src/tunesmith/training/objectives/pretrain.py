"""Language modelling: the negative log-likelihood of every token of plain text, -sum_t log p(x_t | x_<t)."""

from torch import Tensor

from tunesmith.data.records import Chat, Text

reads = (Text, Chat)  # a conversation is read whole, as its template writes it
scores = "all"


def loss(logps: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over targets of -weight * logp, in nats, (); the loop divides by the step's sum of weights."""
    return -(logps * weights).sum()
