"""The vocabulary head: log-probabilities of the targets at scored positions only, in chunks, never the whole logits at once.

With z = h W^T (+ soft-cap), logp = z_y - logsumexp(z) and d logp / d h = (onehot(y) - softmax(z)) W. Where W is frozen that
gradient is formed in the forward, while the chunk's softmax is at hand: 4HV operations a target instead of 6HV or 8HV, and
(N,H) numbers kept. Where W is trained, the residuals onehot - softmax are kept up to KEEP bytes and formed anew beyond.
"""

from typing import Any

import torch
from torch import Tensor

KEEP = 256 * 2**20  # bytes of residuals worth keeping instead of computing the logits a second time


def target_logps(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Return log p(target) in float32 (float64 for float64 input), (N,); hidden (N,H), weight (V,H), targets (N,)."""
    function = _TrainedHead if weight.requires_grad else _FrozenHead
    return function.apply(hidden, weight, targets, softcap)  # type: ignore[no-any-return]


def _chunk_rows(vocabulary: int, on_cpu: bool) -> int:
    # CPU: a chunk's fp32 logits of 2 MB stay in a core's cache (measured: 64 rows at V = 49k, 256 at 2k are fastest, 20-30% before
    # 512 and more); GPU: enough rows to fill the device.
    return max(64, 2**19 // vocabulary) if on_cpu else max(256, 2**28 // vocabulary)


def _residual(h: Tensor, weight: Tensor, y: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Return (logp (n,), softmax(z) - onehot(y) as d(-logp)/d(h W^T) (n,V) in h's dtype).

    The mass q beside the target is summed in fp32, before any rounding: the residual at the target is -q and logp = log(1 - q),
    so that near p = 1, where z_y - logsumexp(z) cancels to noise, both keep their relative precision.
    """
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    raw = h @ weight.t()
    z = raw if softcap is None else torch.tanh(raw.to(wide) / softcap) * softcap
    logp = torch.log_softmax(z, dim=-1, dtype=wide)
    chosen = logp.gather(1, y[:, None])
    residual = logp.exp_().scatter_(1, y[:, None], 0.0)
    beside = residual.sum(-1, keepdim=True)
    residual.scatter_(1, y[:, None], -beside)
    if softcap is not None:
        residual *= 1 - (z / softcap) ** 2
    return torch.where(beside < 0.5, torch.log1p(-beside), chosen)[:, 0], residual.to(h.dtype)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        n = _chunk_rows(len(weight), not hidden.is_cuda)
        wants_grad = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wants_grad else None
        logps = []
        for i in range(0, len(hidden), n):
            logp, residual = _residual(hidden[i : i + n], weight, targets[i : i + n], softcap)
            logps.append(logp)
            if gradient is not None:
                torch.mm(residual, weight, out=gradient[i : i + n])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.cat(logps) if logps else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * -grads[0][:, None].to(gradient.dtype), None, None, None


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        n = _chunk_rows(len(weight), not hidden.is_cuda)
        kept = None
        if len(hidden) * len(weight) * hidden.element_size() <= KEEP:
            kept = hidden.new_empty(len(hidden), len(weight))
        logps = []
        for i in range(0, len(hidden), n):
            logp, residual = _residual(hidden[i : i + n], weight, targets[i : i + n], softcap)
            logps.append(logp)
            if kept is not None:
                kept[i : i + n] = residual
        ctx.save_for_backward(hidden, weight, targets, kept)
        ctx.softcap = softcap
        return torch.cat(logps) if logps else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, kept = ctx.saved_tensors
        n = len(hidden) if kept is not None else _chunk_rows(len(weight), not hidden.is_cuda)
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=wide)  # chunks add up in fp32: rounding once, at the end
        for i in range(0, len(hidden), max(n, 1)):
            rows = slice(i, i + n)
            residual = kept if kept is not None else _residual(hidden[rows], weight, targets[rows], ctx.softcap)[1]
            residual = residual * -grads[0][rows, None].to(residual.dtype)
            torch.mm(residual, weight, out=d_hidden[rows])
            d_weight += residual.t() @ hidden[rows]
        return d_hidden, d_weight.to(weight.dtype), None, None
