"""The vocabulary head: log-probabilities of the targets at scored positions only, in chunks, never the whole logits at once.

With z = h W^T (+ soft-cap), logp = z_y - logsumexp(z) and d logp / d h = (onehot(y) - softmax(z)) W. Where W is frozen that
gradient is formed in the forward, while the chunk's softmax is at hand: 4HV operations a target instead of 6HV or 8HV, and
(N,H) numbers kept. Where W is trained, the residuals onehot - softmax are kept up to KEEP bytes, or as long as that is less than
adding up their products in fp32 would take, and formed anew beyond.
"""

from typing import Any

import torch
from torch import Tensor

KEEP = 256 * 2**20  # bytes of residuals worth keeping instead of computing the logits a second time
MOST = 512  # rows of a chunk on a CPU
FP16 = 2.0**10  # residuals are this many times as large in fp16, coarse below 6e-5: the loss scale comes later


def target_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    rows: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return log p(target) in float32 (float64 for float64 input), (N,); hidden (N,H), weight (V,H), targets (N,).

    rows: ids (n,) and values (n,H) of rows that stand in for those of a frozen weight, and are trained (model/new_tokens.py).
    """
    if rows is not None:
        return _RowsHead.apply(hidden, weight, targets, softcap, *rows)  # type: ignore[no-any-return]
    function = _TrainedHead if weight.requires_grad else _FrozenHead
    return function.apply(hidden, weight, targets, softcap)  # type: ignore[no-any-return]


def folded(hidden: Tensor, head: Any) -> tuple[Tensor, Tensor]:
    """Return hidden states (N,H') and weights (V,H') whose product is the head's logits before a soft-cap: scale (h W^T + bias).

    head has weight (V,H), bias (V,) or None, and scale. The bias is a column of the weights, for an input that is always 1.
    """
    weight = head.weight
    if head.bias is not None:
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        weight = torch.cat([weight, head.bias[:, None]], 1)
    return hidden if head.scale == 1 else hidden * head.scale, weight


def chunks(n: int, weight: Tensor) -> list[slice]:
    """Cut n rows into equal chunks, of a multiple of 64 rows for the sake of the products' shapes.

    CPU: a product of few rows spends its time on rearranging W (64 rows at V = 49k reach a third of the rate of 512), and a chunk's
    logits in bf16 should not be more than 64 MB or so. GPU: enough rows to fill the device.
    """
    vocabulary = len(weight)
    most = max(256, 2**28 // vocabulary) if weight.is_cuda else min(MOST, max(128, 2**25 // vocabulary))
    rows = -(-n // max(1, -(-n // most)))
    rows = min(most, -(-rows // 64) * 64)
    return [slice(i, min(i + rows, n)) for i in range(0, n, max(1, rows))]


def _residual(
    h: Tensor,
    weight: Tensor,
    y: Tensor,
    softcap: float | None,
    residual: Tensor,
    new: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return logp (n,) and fill `residual` (n,V), of h's dtype: softmax(z) - onehot(y), which is d(-logp)/d(h W^T); FP16 times that."""
    torch.mm(h, weight.t(), out=residual)
    if new is not None:
        residual.index_copy_(1, new[0], h @ new[1].t())
    # CPU: the softmax takes several passes over fp32 numbers, which a core's cache holds for some 16 rows at V = 49k.
    n = len(h) if h.is_cuda else max(8, 2**20 // len(weight))
    return torch.cat([_softmax(residual[i : i + n], y[i : i + n], softcap) for i in range(0, len(h), n)])


def _softmax(raw: Tensor, y: Tensor, softcap: float | None) -> Tensor:
    """Return logp (n,) of the logits `raw` (n,V), before any soft-cap, and put the residual in their place.

    The mass q beside the target is summed in fp32, before any rounding: the residual at the target is -q and logp = log(1 - q),
    so that near p = 1, where z_y - logsumexp(z) cancels to noise, both keep their relative precision.
    """
    wide = torch.float64 if raw.dtype == torch.float64 else torch.float32
    z = raw if softcap is None else torch.tanh(raw.to(wide) / softcap) * softcap
    logp = torch.log_softmax(z, dim=-1, dtype=wide)
    chosen = logp.gather(1, y[:, None])
    residual = logp.exp_().scatter_(1, y[:, None], 0.0)
    beside = residual.sum(-1, keepdim=True)
    residual.scatter_(1, y[:, None], -beside)
    if softcap is not None:
        residual *= 1 - (z / softcap) ** 2
    if raw.dtype == torch.float16:
        residual *= FP16
    raw.copy_(residual)
    return torch.where(beside < 0.5, torch.log1p(-beside), chosen)[:, 0]


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        logps, room = [_none(hidden)], None
        for rows in chunks(len(hidden), weight):
            room = hidden.new_empty(rows.stop, len(weight)) if room is None else room  # the first chunk is the longest
            residual = room[: rows.stop - rows.start]
            logps.append(_residual(hidden[rows], weight, targets[rows], softcap, residual))
            if gradient is not None:
                torch.mm(residual, weight, out=gradient[rows])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return torch.mul(gradient, _factors(grads[0], gradient.dtype), out=torch.empty_like(gradient)), None, None, None


class _RowsHead(torch.autograd.Function):
    """_FrozenHead with some rows of W replaced by trained ones: their columns of the residuals are kept, for their gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, ids: Tensor, rows: Tensor
    ) -> Tensor:
        gradient, room = torch.empty_like(hidden), None
        logps, kept = [_none(hidden)], [hidden.new_empty(0, len(ids))]
        for part in chunks(len(hidden), weight):
            room = hidden.new_empty(part.stop, len(weight)) if room is None else room
            residual = room[: part.stop - part.start]
            logps.append(_residual(hidden[part], weight, targets[part], softcap, residual, (ids, rows)))
            kept.append(residual[:, ids])
            residual.index_fill_(1, ids, 0.0)
            torch.mm(residual, weight, out=gradient[part]).addmm_(kept[-1], rows)
        ctx.save_for_backward(hidden, gradient, torch.cat(kept))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gradient, kept = ctx.saved_tensors
        g = _factors(grads[0], gradient.dtype)
        return (gradient * g).to(gradient.dtype), None, None, None, None, kept.t() @ (hidden * g).to(hidden.dtype)


def _keeps(hidden: Tensor, weight: Tensor) -> bool:
    """Whether to keep the residuals of all rows. Chunks of them need a sum of products in fp32, and each chunk's own, beside."""
    size = hidden.element_size()
    return len(hidden) * len(weight) * size <= max(KEEP, weight.numel() * (4 + size))


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        keep = _keeps(hidden, weight)
        parts = chunks(len(hidden), weight)
        room = hidden.new_empty(len(hidden) if keep else max((r.stop - r.start for r in parts), default=0), len(weight))
        logps = [_none(hidden)]
        for rows in parts:
            residual = room[rows] if keep else room[: rows.stop - rows.start]
            logps.append(_residual(hidden[rows], weight, targets[rows], softcap, residual))
        ctx.save_for_backward(hidden, weight, targets, room if keep else None)
        ctx.softcap = softcap
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The residual R of every row counts by that row's -dlogp, g: dh = g (R W), dW = R^T (g h): g meets narrow rows only."""
        hidden, weight, targets, kept = ctx.saved_tensors
        g = _factors(grads[0], hidden.dtype)
        weighted = (hidden * g).to(hidden.dtype)
        if kept is not None:
            return torch.mm(kept, weight).mul_(g), kept.t() @ weighted, None, None
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=wide)  # chunks add up in fp32: rounding once, at the end
        for rows in chunks(len(hidden), weight):
            residual = hidden.new_empty(rows.stop - rows.start, len(weight))
            _residual(hidden[rows], weight, targets[rows], ctx.softcap, residual)
            torch.mm(residual, weight, out=d_hidden[rows]).mul_(g[rows])
            d_weight += residual.t() @ weighted[rows]
        return d_hidden, d_weight.to(weight.dtype), None, None


def _factors(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what each row's residual counts by, (n,1): -dlogp; in fp16 without the residual's factor, and in fp32."""
    g = -grad[:, None]
    return g / FP16 if dtype == torch.float16 else g.to(dtype)


def _none(hidden: Tensor) -> Tensor:
    """Return no log-probs, in the dtype that log-probs have."""
    return hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
