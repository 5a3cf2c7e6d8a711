"""How sure a model is of its next token: the log of the sum of squared probabilities, in chunks, never the whole logits at once."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tunesmith.model.head import chunks, folded

if TYPE_CHECKING:
    from tunesmith.model.policy import Head


@torch.no_grad()
def log_squares(hidden: Tensor, head: "Head") -> Tensor:
    """Return log sum_v p(v)^2 in nats at each position, (N,) float32 (float64 for float64 input), without gradients: 0 where one
    token is certain, -log V where all are alike. hidden (N,H): what the output layer `head` makes logits of (`policy.take_hidden`).
    """
    hidden, weight = folded(hidden, head)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    found = [hidden.new_empty(0, dtype=wide)]
    for rows in chunks(len(hidden), weight):
        logits = hidden[rows] @ weight.t()
        if head.softcap is not None:
            logits = torch.tanh(logits.to(wide) / head.softcap) * head.softcap
        found.append((2 * torch.log_softmax(logits, -1, dtype=wide)).logsumexp(-1))
    return torch.cat(found)
