"""How far one model's next-token distributions are from another's, at given positions, in chunks, never the whole logits at once.

KL(p || q) = sum_v p_v (log p_v - log q_v) with p of the base and q of the policy: d KL / d z = q - p for the policy's logits z, so
that with a frozen head the gradient (q - p) W is formed in the forward, while the chunk's softmax is at hand (as in head.py).
"""

from typing import Any

import torch
from torch import Tensor

from tunesmith.model.head import FP16, chunks


def kl_from_base(
    hidden: Tensor, weight: Tensor, base_hidden: Tensor, base_weight: Tensor, softcap: float | None = None
) -> Tensor:
    """Return KL(base || policy) in nats at each position, (N,) float32 (float64 for float64 input).

    hidden, base_hidden (N,H) and weight, base_weight (V,H) give the logits of the policy and of the base, before a soft-cap; gradients
    go to hidden and, where it is trained, to weight.
    """
    return _Divergence.apply(hidden, weight, base_hidden, base_weight, softcap)  # type: ignore[no-any-return]


def _log_softmax(hidden: Tensor, weight: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities (n,V) in fp32 or wider, and d z / d (h W^T), None where that is 1."""
    raw = hidden @ weight.t()
    wide = torch.promote_types(raw.dtype, torch.float32)
    if softcap is None:
        return torch.log_softmax(raw, -1, dtype=wide), None
    bent = torch.tanh(raw.to(wide) / softcap)
    return torch.log_softmax(bent * softcap, -1), 1 - bent.square()


def _chunk(
    hidden: Tensor, weight: Tensor, base_hidden: Tensor, base_weight: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return the divergences (n,) and their gradients for h W^T (n,V), of hidden's dtype; FP16 times as large in fp16."""
    log_q, slope = _log_softmax(hidden, weight, softcap)
    log_p, _ = _log_softmax(base_hidden, base_weight, softcap)
    p = log_p.exp()
    found = (p * (log_p - log_q)).sum(-1)
    residual = log_q.exp_().sub_(p)
    if slope is not None:
        residual *= slope
    if hidden.dtype == torch.float16:
        residual *= FP16
    return found, residual.to(hidden.dtype)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, base_hidden: Tensor, base_weight: Tensor, softcap: float | None
    ) -> Tensor:
        ctx.trained, ctx.softcap = weight.requires_grad, softcap
        gradient = torch.empty_like(hidden)
        found = [hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))]
        for rows in chunks(len(hidden), weight):
            kl, residual = _chunk(hidden[rows], weight, base_hidden[rows], base_weight, softcap)
            found.append(kl)
            if not ctx.trained:
                torch.mm(residual, weight, out=gradient[rows])
        ctx.save_for_backward(*((hidden, weight, base_hidden, base_weight) if ctx.trained else (gradient,)))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0][:, None]
        if not ctx.trained:
            (gradient,) = ctx.saved_tensors
            return gradient * _factors(g, gradient.dtype), None, None, None, None
        hidden, weight, base_hidden, base_weight = ctx.saved_tensors
        factors = _factors(g, hidden.dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        for rows in chunks(len(hidden), weight):
            _, residual = _chunk(hidden[rows], weight, base_hidden[rows], base_weight, ctx.softcap)
            d_hidden[rows] = (residual @ weight) * factors[rows]
            d_weight += residual.t() @ (hidden[rows] * factors[rows]).to(hidden.dtype)
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _factors(g: Tensor, dtype: torch.dtype) -> Tensor:
    return g / FP16 if dtype == torch.float16 else g.to(dtype)
