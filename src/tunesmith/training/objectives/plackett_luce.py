"""DPO over ranked lists: how likely the whole ranking is (Rafailov et al., 2023, arXiv 2305.18290, appendix A.3).

    -sum_k log ( exp r_k / sum_{j >= k} exp r_j )        r = beta log(p / p_reference), k from the best answer to the worst

The model is Plackett's (1975) and Luce's (1959). A tie says nothing of those that tie: each of them is chosen from itself and what is
below. A list of two is DPO's pair.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Preference
from tunesmith.training.objectives._answers import Lists

reads = (Preference,)
scores = "answers"
compares = "lists"
reference = True


def loss(lists: Lists, *, beta: Annotated[float, Field(gt=0)] = 0.1) -> tuple[Tensor, Tensor]:
    """Return the losses of the lists (G,) in nats, and the rewards r of their answers, (G,K), 0 where a list is shorter."""
    rewards = (beta * lists.answers.ratios)[lists.place].masked_fill(~lists.real, 0.0)
    beaten = rewards[:, None, :].masked_fill(~_below(lists), -torch.inf)
    losses = torch.where(lists.real, beaten.logsumexp(2) - rewards, 0.0).sum(1)
    return losses, rewards


def _below(lists: Lists) -> Tensor:
    """Return what each answer is chosen from, (G,K,K): itself, and what of its list is worse, by the scores or else by place."""
    values, k = lists.values, lists.place.shape[1]
    later = torch.ones(k, k, dtype=torch.bool, device=values.device).triu(1)
    worse = torch.where(values.isnan()[:, :, None], later, values[:, :, None] > values[:, None, :])
    return (worse & lists.real[:, None, :]) | torch.eye(k, dtype=torch.bool, device=values.device)
