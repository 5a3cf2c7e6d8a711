"""AdamW whose moments leave the GPU's memory while it is needed otherwise (Dettmers et al., 2023, arXiv 2305.14314), by bitsandbytes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.training.optimizers import _bitsandbytes
from tunesmith.training.optimizers._arguments import Betas, Decay, Rate

STATE_BYTES = 8  # two moments in fp32
PAGED = True


def check(device: str) -> None:
    """InputError where there is no CUDA device, or bitsandbytes is missing."""
    _bitsandbytes.check_paged("paged_adamw", device)


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return AdamW with paged state over the masters."""
    return _bitsandbytes.make("PagedAdamW32bit", masters, ratios, weight_decay, lr=learning_rate, betas=betas, eps=eps)
