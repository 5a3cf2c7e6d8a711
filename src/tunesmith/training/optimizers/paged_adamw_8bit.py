"""AdamW with moments in 8 bits that leave the GPU's memory while it is needed otherwise, by bitsandbytes (see _bitsandbytes)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tunesmith.training.optimizers import _bitsandbytes
from tunesmith.training.optimizers._arguments import Betas, Decay, Rate

PAGED = True


def STATE_BYTES(name: str, shape: Sequence[int]) -> int:  # noqa: N802 (a number in the other optimizers)
    """Return about 2 bytes a number; 8 for small parameters."""
    return _bitsandbytes.state_bytes(2, shape)


def check(device: str) -> None:
    """InputError where there is no CUDA device, or bitsandbytes is missing."""
    _bitsandbytes.check_paged("paged_adamw_8bit", device)


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return 8-bit AdamW with paged state over the masters."""
    return _bitsandbytes.make("PagedAdamW8bit", masters, ratios, weight_decay, lr=learning_rate, betas=betas, eps=eps)
