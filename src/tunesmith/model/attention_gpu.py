"""Flat attention by torch's varlen kernel (flash attention), asked in the words of the installed torch."""

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tunesmith.model.attention_cpu import Terms

if TYPE_CHECKING:
    from tunesmith.model.attention import Segments


def computes(q: Tensor, sinks: Tensor | None, segments: "Segments", terms: Terms) -> bool:
    """Whether the kernel computes this: 16-bit numbers, a GPU since Ampere, no soft-cap, sinks or dropout, a window if it knows one."""
    if sinks is not None or terms.softcap is not None or terms.dropout:
        return False
    if terms.window is not None and terms.window < segments.reach and "window_size" not in _keywords():
        return False
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] % 8 or q.shape[-1] > 256:
        return False
    return bool(_keywords()) and torch.cuda.get_device_capability(q.device) >= (8, 0)


@lru_cache(maxsize=1)
def _keywords() -> frozenset[str]:
    """What the installed torch's varlen_attn takes (it changed between 2.10 and 2.12); nothing where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def attention(q: Tensor, k: Tensor, v: Tensor, segments: "Segments", terms: Terms) -> Tensor:
    """Return (T,H,D) for q (T,H,D), k and v (T,K,D), H a multiple of K.

    A segment that continues another has more keys than queries; the kernel aligns them at their ends, so it stays causal.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _keywords()
    options: dict[str, Any] = {"is_causal": True}
    if "window_size" in known:  # (how many tokens back, how many ahead); ours counts the token itself
        options = {"window_size": (-1 if terms.window is None else terms.window - 1, 0)}
    if "scale" in known:
        options["scale"] = terms.scale
    elif (own := q.shape[-1] ** -0.5) != terms.scale:  # torch 2.10 always divides by sqrt(D)
        q = q * (terms.scale / own)
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if segments.keys is not None:
        k, v = (_Copies.apply(x, segments.keys) for x in (k, v))
    out = varlen_attn(q, k, v, segments.cu_seqlens, segments.cu_keys, segments.longest, segments.reach, **options)
    return out if isinstance(out, Tensor) else out[0]


class _Copies(torch.autograd.Function):
    """x[index]; the gradients of a prefix's copies are added in fp32, in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.tokens = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        grad = grads[0]
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = grad.new_zeros(ctx.tokens, *grad.shape[1:], dtype=wide)
        return total.index_put_((index,), grad.to(wide), accumulate=True).to(grad.dtype), None
