"""Schedule-free AdamW (Defazio et al., 2024, arXiv 2405.15682): averaged weights in place of a falling rate; by its authors' package.

With gradients taken at y = (1 - b1) z + b1 x: z = z - lr (g / (sqrt(v / (1 - b2^t)) + eps) + decay y); x is the average of all z, each
weighed by the square of the largest rate up to it. Training holds y, and x is what is evaluated and kept: masters.evaluated.
The run's warm-up is the package's own warmup_steps, which its rates and weights come out equal to.
"""

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.training.optimizers._arguments import Betas, Decay, Rate
from tunesmith.training.optimizers._groups import groups

STATE_BYTES = 8  # z and the second moment in fp32
SCHEDULE = "constant"


def check(device: str) -> None:
    """InputError where its package is missing."""
    if importlib.util.find_spec("schedulefree") is None:
        raise InputError("schedule_free needs the package schedulefree: pip install 'tunesmith[schedulefree]'.")


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return schedule-free AdamW over the masters, which are to be trained."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(
        groups(masters, ratios or {}, weight_decay), learning_rate, betas, eps, weight_decay=weight_decay
    )
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]
