"""Flat attention: causal attention inside each segment of a flat batch, registered with transformers as "flat".

On a GPU one varlen kernel does all segments. On the CPU segments of like length form a group, each padded to the group's longest
at its end: with a causal mask no real token ever sees that padding, so the result is exact without any mask, and a group is two
batched matrix products forward and four backward. The probabilities are kept (bytes per layer: 2 heads sum(L^2)), which the stock
CPU flash kernel recomputes; segments beyond LONG go through torch's own kernel, whose memory is linear.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 640  # tokens; above it the square of the length costs more memory than the stock kernel's recomputation is worth
WASTE = 0.8  # a group's shortest segment is at least this share of its longest


@dataclass(frozen=True)
class Group:
    """Tokens start:stop of the flat batch are `count` segments, padded to `length`; `take` (stop-start,) finds them there."""

    start: int
    stop: int
    count: int
    length: int
    take: Tensor | None  # None: nothing is padded
    gather: Tensor | None  # (count*length,): rows of start:stop to put there, padding repeating the group's first token


@dataclass(frozen=True)
class Segments:
    """What attention needs to know of a flat batch: boundaries on the device, longest length, the CPU's groups."""

    cu_seqlens: Tensor
    longest: int
    groups: tuple[Group, ...]


def plan(lengths: tuple[int, ...], cu_seqlens: Tensor) -> Segments:
    """Group the segments (longest first) of a flat batch; groups are for the CPU only."""
    groups: list[Group] = []
    if cu_seqlens.device.type == "cpu":
        first, start = 0, 0
        while first < len(lengths):
            last = first + 1
            longest = lengths[first]
            while last < len(lengths) and longest <= LONG and lengths[last] >= WASTE * longest - 2:
                last += 1
            groups.append(_group(lengths[first:last], start))
            start = groups[-1].stop
            first = last
    return Segments(cu_seqlens, max(lengths), tuple(groups))


def _group(lengths: tuple[int, ...], start: int) -> Group:
    n, longest = len(lengths), lengths[0]
    stop = start + sum(lengths)
    if lengths[-1] == longest:
        return Group(start, stop, n, longest, None, None)
    real = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    take = real.flatten().nonzero()[:, 0]
    gather = torch.zeros(n * longest, dtype=torch.int64)
    gather[take] = torch.arange(stop - start)
    return Group(start, stop, n, longest, take, gather)


class _Grouped(torch.autograd.Function):
    """softmax(scale q k^T + causal) v for every group; q (T,H,D), k and v (T,K,D) with H a multiple of K -> (T,H,D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], scale: float) -> Tensor:
        out, scaled = torch.empty(q.shape, dtype=q.dtype), q * scale
        kept: list[Tensor] = []
        for g in groups:
            qg, kg, vg = (_spread(x, g, k.shape[1]) for x in (scaled, k, v))
            scores = torch.bmm(qg, kg.transpose(1, 2)).view(-1, qg.shape[1] // g.length, g.length, g.length)
            # torch's bf16 softmax computes in fp32 and rounds once, and so does its backward: casts would only cost passes
            p = torch.softmax(scores.masked_fill_(_future(g.length), float("-inf")), dim=-1).view(
                -1, qg.shape[1], g.length
            )
            out[g.start : g.stop] = _collect(torch.bmm(p, vg), g, q.shape[1])
            kept += [qg, kg, vg, p]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.scale, ctx.shapes = groups, scale, (q.shape, k.shape)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_out,) = grads
        q_shape, k_shape = ctx.shapes
        dq = torch.empty(q_shape, dtype=d_out.dtype)
        dk, dv = torch.empty(k_shape, dtype=d_out.dtype), torch.empty(k_shape, dtype=d_out.dtype)
        kept = ctx.saved_tensors
        for i, g in enumerate(ctx.groups):
            qg, kg, vg, p = kept[4 * i : 4 * i + 4]
            dog = _spread(d_out, g, k_shape[1], zero=True)
            dv[g.start : g.stop] = _collect(torch.bmm(p.transpose(1, 2), dog), g, k_shape[1])
            ds = torch._softmax_backward_data(torch.bmm(dog, vg.transpose(1, 2)), p, -1, p.dtype)
            dq[g.start : g.stop] = _collect(torch.bmm(ds, kg), g, q_shape[1]).mul_(ctx.scale)
            dk[g.start : g.stop] = _collect(torch.bmm(ds.transpose(1, 2), qg), g, k_shape[1])  # qg carries the scale
        return dq, dk, dv, None, None


def _future(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu_(1)


def _spread(x: Tensor, g: Group, kv_heads: int, zero: bool = False) -> Tensor:
    """(T,H,D) -> (count*kv_heads, (H/kv_heads)*length, D): the group's segments, padded, heads that share a key in one matrix."""
    heads, width = x.shape[1], x.shape[2]
    rows = x[g.start : g.stop]
    if g.gather is not None and g.take is not None:
        if zero:
            padded = x.new_zeros(g.count * g.length, heads, width)
            padded[g.take] = rows
            rows = padded
        else:
            rows = rows[g.gather]
    per = heads // kv_heads
    return (
        rows.view(g.count, g.length, kv_heads, per, width)
        .permute(0, 2, 3, 1, 4)
        .reshape(g.count * kv_heads, per * g.length, width)
    )


def _collect(x: Tensor, g: Group, heads: int) -> Tensor:
    """The inverse of _spread: back to the group's real tokens, (stop-start, heads, D)."""
    width = x.shape[-1]
    kv_heads = x.shape[0] // g.count
    rows = (
        x.view(g.count, kv_heads, heads // kv_heads, g.length, width).permute(0, 3, 1, 2, 4).reshape(-1, heads, width)
    )
    return rows if g.take is None else rows[g.take]


def _stock(q: Tensor, k: Tensor, v: Tensor, g: Group, scale: float) -> Tensor:
    """torch's own kernel on one long segment; (L,H,D) -> (L,H,D)."""
    q, k, v = (x[None, g.start : g.stop].transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)[0]


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    short = tuple(g for g in segments.groups if g.length <= LONG)
    long = [g for g in segments.groups if g.length > LONG]
    if not long:
        return _Grouped.apply(q, k, v, short, scale)  # type: ignore[no-any-return]
    # Segments are sorted longest first, so the long ones are a prefix of the batch.
    parts = [_stock(q, k, v, g, scale) for g in long]
    if short:
        cut = long[-1].stop
        moved = tuple(Group(g.start - cut, g.stop - cut, g.count, g.length, g.take, g.gather) for g in short)
        parts.append(_Grouped.apply(q[cut:], k[cut:], v[cut:], moved, scale))
    return torch.cat(parts)


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    """torch's varlen kernel; its way to say "causal", "scale" and "grouped heads" changed between torch 2.10 and 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "scale" in known:
        options["scale"] = scale
    elif (own := q.shape[-1] ** -0.5) != scale:  # torch 2.10 always divides by sqrt(D)
        q = q * (scale / own)
    if k.shape[1] != q.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    cu, longest = segments.cu_seqlens, segments.longest
    out = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
    return out if isinstance(out, Tensor) else out[0]


def flat_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1,H,T,D), key and value (1,K,T,D) -> (1,T,H,D).

    Raises ValueError on what it does not compute exactly (soft-caps, sinks, dropout, a window shorter than a segment).
    """
    given = {k for k, v in unknown.items() if v is not None and k not in ("position_ids", "use_cache", "is_causal")}
    if given or attention_mask is not None or dropout:
        raise ValueError(f"flat attention does not compute {sorted(given) or 'masks or dropout'}")
    if sliding_window is not None and sliding_window < segments.longest:
        raise ValueError(f"flat attention has no window of {sliding_window} tokens")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    out = _on_gpu(q, k, v, segments, scale) if q.is_cuda else _on_cpu(q, k, v, segments, scale)
    return out[None], None


def register() -> None:
    """Make "flat" known to transformers; a name its mask registry lacks builds no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register("flat", flat_attention)
