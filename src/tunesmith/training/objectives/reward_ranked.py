"""Reward modelling over ranked lists: how likely the whole ranking is by the answers' scores (Plackett, 1975; Luce, 1959; ListMLE, Xia et
al., 2008).

    -sum_k log ( exp r_k / sum_{j >= k} exp r_j ) + c (2 mean_k r_k)^2        r the score, k from the best answer to the worst

Ties are as in plackett_luce.py, which this is with scores in place of beta log(p / p_reference). A list of two is the pair of reward.py,
which takes longer lists by their pairs; c holds scores near 0 as there.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Preference
from tunesmith.training.objectives import plackett_luce
from tunesmith.training.objectives._answers import Lists

reads = (Preference,)
scores = "last"
compares = "lists"
model = "reward"
RATE = 1.0  # of SFT's learning rate: what is learnt is new, there is nothing that a large step would undo


def loss(lists: Lists, *, center: Annotated[float, Field(ge=0)] = 0.0) -> tuple[Tensor, Tensor]:
    """Return the losses of the lists (G,) in nats, and their answers' scores (G,K); the answers' logps are the scores."""
    losses, rewards = plackett_luce.loss(lists, beta=1.0)
    mean = rewards.sum(1) / lists.real.sum(1)
    return losses + center * (2 * mean) ** 2, rewards
