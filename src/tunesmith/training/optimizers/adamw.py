"""AdamW (Loshchilov & Hutter, 2019, arXiv 1711.05101), torch's fused step.

m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.training.optimizers._arguments import Betas, Decay, Rate
from tunesmith.training.optimizers._groups import groups

STATE_BYTES = 8  # two moments in fp32


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return AdamW over the masters; matrices decay, vectors (norms, biases) never do."""
    fused = all(m.device.type in ("cpu", "cuda") for m in masters.values())
    parts = groups(masters, ratios or {}, weight_decay)
    return torch.optim.AdamW(parts, lr=learning_rate, betas=betas, eps=eps, fused=fused)
