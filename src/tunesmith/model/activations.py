"""Activation checkpointing (Chen et al., 2016, arXiv 1604.06174): what a layer computes is forgotten, and computed again in the backward.

full: of a layer only its input is kept. A number n: so of every n-th layer, and the others keep what they compute. selective:
attention is kept, the feed-forward block, which holds most of a layer's numbers and has no part that grows with the square of the
length, is computed again. Gradients are the same to the last bit, dropout included (the random state is restored for the second pass).
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tunesmith.training.memory import How


def checkpoint_activations(model: nn.Module, how: How) -> int:
    """Let the model's decoder layers recompute as `how` says; return how many do. Call it after layers were fused.

    n counts as torchtitan's does: layers n, 2n, ... A layer without a block of its own named `mlp` (OPT) is recomputed whole under
    "selective" too.
    """
    if how == "none":
        return 0
    layers = decoder_layers(model)
    if isinstance(how, int):
        layers = layers[how - 1 :: how]
    for layer in layers:
        block: Any = getattr(layer, "mlp", layer) if how == "selective" else layer
        block.forward = partial(_recomputed, block.forward)
    return len(layers)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's decoder layers: what transformers itself marks as the unit of checkpointing."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
