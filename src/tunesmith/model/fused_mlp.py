"""The gated feed-forward block down(act(gate(x)) up(x)) (Shazeer, 2020, arXiv 2002.05202) as one step of autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.model.kernels import gpu_kernels
from tunesmith.model.linear import TENSORS, Group, Parts, flatten


def _silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(dy, x)  # type: ignore[no-any-return]


def _gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(dy, x, approximate="tanh")  # type: ignore[no-any-return]


Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
ACTIVATIONS: tuple[Activation, ...] = ((F.silu, _silu_backward), (partial(F.gelu, approximate="tanh"), _gelu_backward))


def gated_mlp(x: Tensor, activation: Activation, layers: Sequence[Parts]) -> Tensor:
    """Return down(act(gate(x)) up(x)) for x (..., in); layers: gate, up and down."""
    fixed, tensors = flatten(layers)
    return _GatedMlp.apply(x, activation, fixed, *tensors)  # type: ignore[no-any-return]


class _GatedMlp(torch.autograd.Function):
    """Keeps x, gate, up and what the layers keep, and computes the rest again.

    A CPU keeps act(gate) too: computing it again would take 3% of a step there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, fixed: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        (gate, up), kept = Group(fixed[:2], tensors[: 2 * TENSORS]).forward(flat)
        acted = None if x.is_cuda else activation[0](gate)
        (out,), kept_down = Group(fixed[2:], tensors[2 * TENSORS :]).forward(_gated(activation, gate, up, acted))
        ctx.save_for_backward(flat, gate, up, acted, *kept, *kept_down, *tensors)
        ctx.activation, ctx.fixed, ctx.shape = activation, fixed, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, acted, *saved = ctx.saved_tensors
        kept, kept_down, tensors = saved[:5], saved[5:8], saved[8:]
        needs_x, _, _, *needs = ctx.needs_input_grad
        down = Group(ctx.fixed[2:], tensors[2 * TENSORS :])
        looks = any(needs[2 * TENSORS :]) or down.parts[0].drop  # at down's input: only its own gradients do
        product = _gated(ctx.activation, gate, up, acted) if looks else gate
        d, found_down = down.backward(product, kept_down, [grads[0].reshape(len(x), -1)], needs[2 * TENSORS :])
        assert d is not None
        d_gate, d_up = _gated_backward(ctx.activation, d, gate, up, acted)
        group = Group(ctx.fixed[:2], tensors[: 2 * TENSORS])
        dx, found = group.backward(x, kept, [d_gate, d_up], needs[: 2 * TENSORS], needs_x)
        return (None if dx is None else dx.view(ctx.shape), None, None, *found, *found_down)


def _gated(activation: Activation, gate: Tensor, up: Tensor, acted: Tensor | None) -> Tensor:
    """Return act(gate) up; acted: act(gate) where it is at hand."""
    if (own := gpu_kernels(gate)) is not None:
        return own.gated(gate, up, _is_gelu(activation))  # type: ignore[no-any-return]
    return (activation[0](gate) if acted is None else acted) * up


def _gated_backward(
    activation: Activation, d: Tensor, gate: Tensor, up: Tensor, acted: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and up for d, that of act(gate) up, whose memory is used."""
    if (own := gpu_kernels(gate)) is not None:
        return own.gated_backward(d, gate, up, _is_gelu(activation))  # type: ignore[no-any-return]
    d_up = d * (activation[0](gate) if acted is None else acted)
    return activation[1](d.mul_(up), gate), d_up


def _is_gelu(activation: Activation) -> bool:
    return activation is ACTIVATIONS[1]
