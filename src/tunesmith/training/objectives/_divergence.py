"""What keeps the policy near its reference in a loss of pairs: f-DPO's divergences (Wang et al., 2023, arXiv 2309.16240).

With u = p / p_reference of a whole answer, DPO's log u becomes f'(u), f the divergence's generator (table 1). What else f'(u)
brings with it (the multiplier of "sums to 1") is the prompt's own and cancels between the two answers of a pair, and only there.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.errors import InputError
from tunesmith.training.objectives._answers import Pairs, Side

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
Alpha = Annotated[float, Field(gt=0, lt=1)]
MOST = 80.0  # exponents beyond would leave fp32


def check(options: Mapping[str, Any], where: str) -> None:
    """InputError for an alpha that no divergence has; `where` names the section."""
    if "alpha" in options and options.get("divergence") != "alpha":
        found = f"divergence is {options['divergence']}" if "divergence" in options else "there is no divergence"
        raise InputError(
            f"{where}: alpha is that of an alpha-divergence, and {found}; set divergence: alpha, or take alpha away."
        )


def derivative(ratios: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """Return f'(u) of `ratios` log u, without what cancels; the same shape.

    reverse_kl log u; forward_kl 1 - 1/u; js log(2u / (1 + u)); alpha (1 - u^-alpha) / alpha, which is the first at alpha 0 and the
    second at alpha 1. TRL's coefficient of it is 1 - alpha.
    """
    if divergence == "reverse_kl":
        return ratios
    if divergence == "js":
        return math.log(2) + logsigmoid(ratios)
    power = 1.0 if divergence == "forward_kl" else alpha
    return -torch.expm1((-power * ratios).clamp(max=MOST)) / power


def gap(pairs: Pairs, divergence: Divergence, alpha: float, per_token: bool = False) -> Tensor:
    """Return f'(u) of the chosen answer minus that of the rejected one, (P,); per_token: each divided by its answer's tokens first."""

    def of(side: Side) -> Tensor:
        found = derivative(side.ratios, divergence, alpha)
        return found / side.lengths.clamp(min=1) if per_token else found

    return of(pairs.chosen) - of(pairs.rejected)
