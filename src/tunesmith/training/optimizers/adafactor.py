"""Adafactor (Shazeer & Stern, 2018, arXiv 1804.04235): of a matrix's second moments only the means of rows and columns are kept.

With b = 1 - t^decay_rate: R = b R + (1 - b) mean over columns of (g^2 + 1e-30), C likewise over rows; V = R C / mean(R);
u = g / sqrt(V); w = (1 - lr decay) w - lr u / max(1, rms(u) / clip_threshold). A vector keeps its V whole.
transformers' own, as its Trainer runs it: without momentum, and the learning rate is what is given, not one relative to the weights.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.training.optimizers import count
from tunesmith.training.optimizers._arguments import Decay, Rate
from tunesmith.training.optimizers._groups import groups


def STATE_BYTES(name: str, shape: Sequence[int]) -> int:  # noqa: N802 (a number in the other optimizers)
    """Return 4 bytes for every row and every column, or every number of a vector."""
    if len(shape) < 2:
        return 4 * count(shape)
    return 4 * (count(shape[:-1]) + count(shape[:-2]) * shape[-1])


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    clip_threshold: Rate = 1.0,
    decay_rate: Annotated[float, Field(ge=-1, lt=0)] = -0.8,
) -> torch.optim.Optimizer:
    """Return Adafactor over the masters."""
    from transformers import Adafactor

    fixed = {"scale_parameter": False, "relative_step": False}
    parts = groups(masters, ratios or {}, weight_decay)
    return Adafactor(parts, learning_rate, clip_threshold=clip_threshold, decay_rate=decay_rate, **fixed)  # type: ignore[no-any-return]
