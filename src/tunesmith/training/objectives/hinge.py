"""Hinge loss on the difference: nothing more is asked of a pair that is far enough apart (Zhao et al., 2023, arXiv 2305.10425, SLiC-HF).

    max(0, 1 - beta (f'(u_chosen) - f'(u_rejected)))        u = p / p_reference

With a reference, as Liu et al. have it (2023, arXiv 2309.06657, RSO's hinge-norm). f'(u) = log u, or f-DPO's (_divergence.py).
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
    losses = (1 - beta * gap(pairs, divergence, alpha)).relu()
    return losses, beta * pairs.chosen.ratios, beta * pairs.rejected.ratios
