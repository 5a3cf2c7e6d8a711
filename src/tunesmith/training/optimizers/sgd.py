"""Gradient descent with momentum (Sutskever et al., 2013, "On the importance of initialization and momentum"), torch's fused step.

g = g + decay w; m = momentum m + g; w = w - lr m, or by Nesterov w - lr (g + momentum m)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.training.optimizers._arguments import Beta, Decay, Rate
from tunesmith.training.optimizers._groups import groups

STATE_BYTES = 4  # the momentum in fp32
RATE = 100  # where it learns as fast as AdamW on the starter; larger models want more


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    momentum: Beta = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return SGD over the masters; its steps are as large as the gradients, which train.clip_norm bounds."""
    fused = all(m.device.type in ("cpu", "cuda") for m in masters.values())
    parts = groups(masters, ratios or {}, weight_decay)
    optimizer = torch.optim.SGD(parts, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
    if momentum:
        for (
            master
        ) in masters.values():  # else a first step that is skipped leaves the fused step's memory as it was found
            optimizer.state[master]["momentum_buffer"] = torch.zeros_like(master)
    return optimizer
