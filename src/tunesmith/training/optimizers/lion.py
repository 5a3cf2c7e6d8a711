"""Lion (Chen et al., 2023, arXiv 2302.06675): the sign of an average of gradients, so every weight moves by the learning rate.

u = sign(b1 m + (1 - b1) g); w = (1 - lr decay) w - lr u; m = b2 m + (1 - b2) g
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunesmith.training.optimizers._arguments import Betas, Decay, Rate
from tunesmith.training.optimizers._groups import groups, portions

STATE_BYTES = 4  # one moment in fp32
RATE = 0.5  # of AdamW's over a few hundred steps, as measured on the starter; the paper's 0.1 to 0.3 is of long pre-training


class Lion(torch.optim.Optimizer):
    """Groups hold lr, weight_decay and betas."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step; the gradients stay as they are."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for params in portions(group["params"]):
                grads = [p.grad for p in params if p.grad is not None]
                for p in params:
                    if not self.state[p]:
                        self.state[p]["exp_avg"] = torch.zeros_like(p)
                averages = [self.state[p]["exp_avg"] for p in params]
                update = torch._foreach_lerp(averages, grads, 1 - beta1)
                torch._foreach_sign_(update)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, update, alpha=-group["lr"])
                torch._foreach_lerp_(averages, grads, 1 - beta2)


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """Return Lion over the masters. Where AdamW's weight decay is wanted, its own must be larger as its rate is smaller."""
    return Lion(groups(masters, ratios or {}, weight_decay), {"lr": learning_rate, "betas": betas})
