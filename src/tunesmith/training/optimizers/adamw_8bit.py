"""AdamW with moments in 8 bits (Dettmers et al., 2022, arXiv 2110.02861), by bitsandbytes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tunesmith.training.optimizers import _bitsandbytes
from tunesmith.training.optimizers._arguments import Betas, Decay, Rate


def STATE_BYTES(name: str, shape: Sequence[int]) -> int:  # noqa: N802 (a number in the other optimizers)
    """Return about 2 bytes a number; 8 for small parameters."""
    return _bitsandbytes.state_bytes(2, shape)


def check(device: str) -> None:
    """InputError where bitsandbytes is missing or the device is neither a CPU nor CUDA's."""
    _bitsandbytes.check_package("adamw_8bit", device)


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return 8-bit AdamW over the masters."""
    return _bitsandbytes.make("AdamW8bit", masters, ratios, weight_decay, lr=learning_rate, betas=betas, eps=eps)
