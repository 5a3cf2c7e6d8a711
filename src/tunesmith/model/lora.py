"""The fused LoRA layer: PEFT's modules and parameters, our forward and backward.

y = x W^T + s (x A^T) B^T keeps x and x A^T only; PEFT's own forward keeps the scaled low-rank product and adds out of place.
Gradients: dB = s dy^T (x A^T), dA = s (dy B)^T x, dx = dy W + s (dy B) A.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()
        out = F.linear(flat, w, bias)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, low, w, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, w, a, b = ctx.saved_tensors
        dy = grads[0].reshape(-1, w.shape[0])
        d_low = (dy @ b).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ w).addmm_(d_low, a).view(ctx.shape)
        return dx, None, None, d_low.t() @ x, (dy.t() @ low).mul_(ctx.scale), None


def fuse(model: nn.Module) -> int:
    """Give every plain PEFT LoRA layer (one adapter, no dropout, no DoRA, a frozen linear base) the fused forward; return how many.

    Set on the instance, so PEFT still owns saving, loading and merging; layers of any other kind keep PEFT's forward.
    """
    from peft.tuners.lora.layer import Linear

    fused = 0
    for module in model.modules():
        layer: Any = module
        if (
            type(layer) is not Linear
            or type(layer.base_layer) is not nn.Linear
            or layer.base_layer.weight.requires_grad
        ):
            continue
        (name, *others) = layer.active_adapters
        plain = isinstance(layer.lora_dropout[name], nn.Identity) and not layer.use_dora.get(name, False)
        if others or not plain or layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None:
            continue
        layer.forward = partial(_forward, layer, name)
        fused += 1
    return fused


def _forward(layer: Any, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _FusedLora.apply(x, base.weight, base.bias, a, b, layer.scaling[name])  # type: ignore[no-any-return]
