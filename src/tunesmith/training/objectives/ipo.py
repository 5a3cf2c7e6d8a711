"""Identity preference optimization: the difference goes to a fixed one and no further (Azar et al., 2023, arXiv 2310.12036, eq. 17).

    (f'(u_chosen) / n_chosen - f'(u_rejected) / n_rejected - 1 / (2 beta))^2        u = p / p_reference, n tokens; beta is the paper's tau

The paper says nothing of lengths; its authors' results are those of means over tokens, as TRL's are. f'(u) = log u, or f-DPO's
(_divergence.py).
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.data.records import Preference
from tunesmith.training.objectives import _divergence
from tunesmith.training.objectives._answers import Pairs
from tunesmith.training.objectives._divergence import Alpha, Divergence, gap

reads = (Preference,)
scores = "answers"
compares = "pairs"
reference = True
check = _divergence.check


def loss(
    pairs: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    divergence: Divergence = "reverse_kl",
    alpha: Alpha = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the pairs (P,), and the rewards beta log u of their chosen and rejected answers, (P,) each, in nats.

    alpha: the divergence's, where that is "alpha".
    """
    losses = (gap(pairs, divergence, alpha, per_token=True) - 1 / (2 * beta)) ** 2
    return losses, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
