"""Exact attention over the groups of a flat batch, forward and backward: the CPU's, and any device's that has no kernel for it.

A tile is BLOCK queries of every segment of a group, against the keys they may see, first those of the prefix they share: one
batched product. Keys behind a tile's last query are never touched, which saves a third of the square. Up to LONG keys the
probabilities are kept for the backward pass (an entry per head, query and key); beyond, they are computed again, a tile at a
time, so that memory grows with the tokens and not with their square.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tunesmith.model.attention import Group, Segments

BLOCK = 128  # queries of a tile; measured: 64 to 128 are fastest, whole segments of up to 400 take 1.3 times as long
LONG = 1024  # keys; above it the probabilities cost more memory than computing them again is worth


@dataclass(frozen=True)
class Terms:
    """softmax over 0 <= i - j < window of cap(scale q_i k_j), one more logit per head where there are sinks, then dropout."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    seed: int = 0  # of the dropout: the backward pass draws the same again


class Tile(NamedTuple):
    """Queries first:last of each segment of a group, and keys low:high of [filling; its prefix; itself].

    rows (K count (last-first),): where the queries are in (T,K,...) laid end to end, heads that share a key side by side; padding
    is behind the last token. start: where the tile's results begin when those of all tiles are laid end to end.
    """

    group: "Group"
    rows: Tensor
    start: int
    first: int
    last: int
    low: int
    high: int

    def part(self, x: Tensor, batch: int, width: int) -> Tensor:
        """The tile's part of all tiles' results: (batch = K count, tokens times heads per key, D)."""
        return x[self.start : self.start + len(self.rows)].view(batch, -1, width)


def attention(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: "Segments", terms: Terms) -> Tensor:
    """Return (T,H,D) for q (T,H,D), k and v (T,K,D), H a multiple of K, and sinks (H,) or None; any floating dtype and device."""
    if terms.window is not None and terms.window >= segments.reach:
        terms = replace(terms, window=None)
    return _Attention.apply(q, k, v, sinks, segments, terms)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: "Segments", terms: Terms
    ) -> Tensor:
        kv_heads, width = k.shape[1:]
        qr = q.reshape(len(q) * kv_heads, -1)
        out = qr.new_empty(kv_heads * len(segments.index), qr.shape[1])
        kept, order = [], []
        for g, _, keys, tiles in _groups(segments, kv_heads, terms):
            batch = kv_heads * g.count
            kg, vg = (_gather(x.reshape(-1, width), keys, batch, width) for x in (k, v))
            for tile in tiles:
                qb = _gather(qr, tile.rows, batch, width).mul_(terms.scale)
                p, _ = _probabilities(qb, kg[:, tile.low : tile.high], sinks, tile, terms)
                if _keeps(g, terms) and any(ctx.needs_input_grad):
                    kept.append(p)
                torch.bmm(_dropped(p, tile, terms), vg[:, tile.low : tile.high], out=tile.part(out, batch, width))
                order.append(tile.rows)
        ctx.save_for_backward(q, k, v, sinks, *kept)
        ctx.segments, ctx.terms = segments, terms
        return _restore(out, order, q, kv_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, *kept = ctx.saved_tensors
        segments, terms, (kv_heads, width) = ctx.segments, ctx.terms, k.shape[1:]
        qr = q.reshape(len(q) * kv_heads, -1)
        dor = torch.cat([grads[0].reshape(qr.shape), qr.new_zeros(kv_heads, qr.shape[1])])  # what padding reads is zero
        # Where several tiles or segments add to one key they do so in fp32 or wider: rounding once, at the end.
        wide = torch.promote_types(k.dtype, torch.float32)
        past = torch.zeros(2, *k.shape, dtype=wide, device=k.device) if segments.linked else None
        dsinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
        dqs = qr.new_empty(kv_heads * len(segments.index), qr.shape[1])
        dks: list[Tensor] = []
        dvs: list[Tensor] = []
        order, own_order, remaining = [], [], iter(kept)
        for g, own, keys, tiles in _groups(segments, kv_heads, terms):
            batch = kv_heads * g.count
            kg, vg = (_gather(x.reshape(-1, width), keys, batch, width) for x in (k, v))
            dkg, dvg = (torch.zeros_like(kg, dtype=wide if len(tiles) > 1 else None) for _ in range(2))
            for tile in tiles:
                seen = slice(tile.low, tile.high)
                qb = _gather(qr, tile.rows, batch, width).mul_(terms.scale)
                dob = _gather(dor, tile.rows, batch, width)
                found = (next(remaining), None) if _keeps(g, terms) else None
                p, capped = found or _probabilities(qb, kg[:, seen], sinks, tile, terms)
                dp = _dropped(torch.bmm(dob, vg[:, seen].transpose(1, 2)), tile, terms)
                ds, dsink = _through_softmax(dp, p, capped)
                if dsinks is not None and dsink is not None:
                    dsinks += dsink.view(kv_heads, g.count, tile.last - tile.first, -1).sum((1, 2)).view(-1)
                torch.bmm(ds, kg[:, seen], out=tile.part(dqs, batch, width)).mul_(terms.scale)
                dkg[:, seen] += torch.bmm(ds.transpose(1, 2), qb)  # qb carries the scale
                dvg[:, seen] += torch.bmm(_dropped(p, tile, terms).transpose(1, 2), dob)
                order.append(tile.rows)
            for total, part, parts in ((0, dkg, dks), (1, dvg, dvs)):
                parts.append(part[:, g.before :].to(k.dtype).reshape(-1, width))
                if past is not None and g.prefix:
                    shared = part[:, g.before - g.prefix : g.before].reshape(kv_heads, g.count, g.prefix, width)
                    shared = shared.sum(1, dtype=wide)
                    past[total, g.prefix_start : g.prefix_start + g.prefix] += shared.transpose(0, 1)
            own_order.append(own)
        dq = _restore(dqs, order, q, kv_heads)
        dk, dv = (_restore(torch.cat(parts), own_order, k, kv_heads) for parts in (dks, dvs))
        if past is not None:
            dk, dv = (past[0] + dk).to(k.dtype), (past[1] + dv).to(k.dtype)
        return dq, dk, dv, None if sinks is None or dsinks is None else dsinks.to(sinks.dtype), None, None


def _keeps(g: "Group", terms: Terms) -> bool:
    """Whether the forward keeps the probabilities; the derivative of a soft-cap needs the scores again anyway."""
    return terms.softcap is None and g.before + g.length <= LONG


def _groups(segments: "Segments", kv_heads: int, terms: Terms) -> Iterator[tuple["Group", Tensor, Tensor, list[Tile]]]:
    """Yield every group, with the rows of its tokens and of its keys in (T,K,...) laid end to end, heads first, and its tiles."""
    heads = torch.arange(kv_heads, device=segments.index.device)[:, None]
    rows = segments.index * kv_heads + heads
    for g in segments.groups:
        own = rows[:, g.at : g.at + g.count * g.length].view(kv_heads, g.count, g.length)
        keys = own
        if g.prefix:
            end = g.prefix_start + g.prefix
            prefix = torch.arange(end - g.before, end, device=heads.device).clamp_(min=0) * kv_heads + heads
            keys = torch.cat([prefix[:, None].expand(-1, g.count, -1), own], -1)
        tiles = []
        for first in range(0, g.length, BLOCK):
            last = min(first + BLOCK, g.length)
            low = 0 if terms.window is None else max(0, g.before + first - terms.window + 1)
            start = kv_heads * (g.at + g.count * first)
            tiles.append(Tile(g, own[:, :, first:last].reshape(-1), start, first, last, low, g.before + last))
        yield g, own.reshape(-1), keys.reshape(-1), tiles


def _gather(x: Tensor, rows: Tensor, batch: int, width: int) -> Tensor:
    """Rows of (T,K,...) laid end to end -> (batch = K count, tokens times heads per key, D); padding repeats the last row."""
    return x.index_select(0, rows.clamp(max=len(x) - 1)).view(batch, -1, width)


def _restore(results: Tensor, order: list[Tensor], like: Tensor, kv_heads: int) -> Tensor:
    """Undo _gather: what was computed for the rows `order` (of all tiles or groups, laid end to end), in the shape of `like`."""
    rows = torch.cat(order)
    place = rows.new_empty((len(like) + 1) * kv_heads)  # the last ones are padding's
    place.scatter_(0, rows, torch.arange(len(rows), device=rows.device))
    return results.index_select(0, place[: len(like) * kv_heads]).view(like.shape)


def _probabilities(
    q: Tensor, keys: Tensor, sinks: Tensor | None, tile: Tile, terms: Terms
) -> tuple[Tensor, Tensor | None]:
    """Return (softmax of the scores, the sinks' share in a last column; tanh(scores / cap) where there is a cap)."""
    scores, capped = torch.bmm(q, keys.transpose(1, 2)), None
    if terms.softcap is not None:
        capped = scores.div_(terms.softcap).tanh_()
        scores = capped * terms.softcap
    count, queries = tile.group.count, tile.last - tile.first
    hidden = _hidden(tile, terms.window, q.dtype, q.device)
    scores.view(len(scores), queries, -1, keys.shape[1])[..., -hidden.shape[-1] :].add_(hidden)
    filling = tile.group.before - tile.group.prefix - tile.low
    if filling > 0:
        scores[..., :filling] = float("-inf")
    if sinks is not None:
        column = sinks.to(q.dtype).view(len(q) // count, 1, 1, -1).expand(-1, count, queries, -1)
        scores = torch.cat([scores, column.reshape(*scores.shape[:2], 1)], -1)
    # torch's bf16 softmax computes in fp32 and rounds once, and so does its backward: casts would only cost passes.
    return torch.softmax(scores, -1), capped


def _through_softmax(dp: Tensor, p: Tensor, capped: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the scores and of the sinks, if p has a column for these, from that of the probabilities."""
    keys = dp.shape[-1]
    if p.shape[-1] > keys:
        dp = torch.cat([dp, dp.new_zeros(*dp.shape[:2], 1)], -1)
    both = torch._softmax_backward_data(dp, p, -1, p.dtype)
    ds, dsink = (both, None) if both.shape[-1] == keys else (both[..., :keys], both[..., keys])
    return ds if capped is None else ds * (1 - capped * capped), dsink


def _dropped(x: Tensor, tile: Tile, terms: Terms) -> Tensor:
    """Return x (K count, n, keys or one more) without the sinks' column, with the tile's dropout: the same entries at every call."""
    x = x[..., : tile.high - tile.low]
    if not terms.dropout:
        return x
    generator = torch.Generator(x.device).manual_seed(terms.seed + tile.start)
    keep = torch.empty_like(x).bernoulli_(1 - terms.dropout, generator=generator)
    return x * keep.div_(1 - terms.dropout)


def _hidden(tile: Tile, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (queries, 1, columns): -inf where a key is not seen, for the last `columns` keys; all before these are seen."""
    queries, keys = tile.last - tile.first, tile.high - tile.low
    if window is None or keys <= window:
        return _mask(queries, queries, None, dtype, device)
    return _mask(queries, keys, window, dtype, device)


@lru_cache(maxsize=64)
def _mask(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Queries and keys end at the same token."""
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    hidden = behind < 0
    if window is not None:
        hidden |= behind >= window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))[:, None]
