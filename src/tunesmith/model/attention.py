"""Flat attention: causal attention inside each segment of a flat batch and to the prefix it continues.

Registered with transformers as "flat". On a GPU one varlen kernel does all segments (attention_gpu.py); on the CPU, and for what
that kernel does not compute, groups of segments of like length do (attention_cpu.py).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.model import attention_cpu, attention_gpu
from tunesmith.model.attention_cpu import Terms
from tunesmith.model.layout import moved, preceded, without

PAIRS = 2**18  # query-key pairs of a tile per head: enough to fill the processor, few enough to stay near its caches
_opaque = False  # whether compiled code must not look into "flat"


@dataclass(frozen=True)
class Group:
    """`count` segments padded to `length` tokens, which are Segments.index[at : at + count length].

    All continue the same prefix: tokens prefix_start : prefix_start + prefix of the flat batch (prefix 0: none), to which as many
    keys that none sees are added in front as make it `before` tokens.
    """

    at: int
    count: int
    length: int
    prefix_start: int
    prefix: int
    before: int


@dataclass(frozen=True)
class Prefix:
    """Keys and values of V virtual tokens, (layers,2,K,V,D), which stand before each of `places` in every layer's own (prefix tuning)."""

    pairs: Tensor
    places: tuple[int, ...]

    def before(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (T,...) with the virtual tokens' among them; their queries are zeros and of no use."""
        keys, values = self.pairs[layer].transpose(1, 2)
        return (
            preceded(q, q.new_zeros(len(keys), *q.shape[1:]), self.places),
            preceded(k, keys, self.places),
            preceded(v, values, self.places),
        )


@dataclass(frozen=True)
class Segments:
    """The plan of attention over a flat batch of T tokens: `groups` of segments of like length; and what the varlen kernel reads.

    index (R,) int64: the flat token at each place of the padded groups, T for padding. cu_seqlens (S+1,) int32 bounds the queries
    of segment s, cu_keys (S+1,) int32 its keys in the flat tokens `keys` (those of its prefix, then its own); keys is None where
    no segment continues another. longest: tokens of the longest segment; reach: the same with its prefix. prefix: keys and values
    that the plan counts among its tokens, and the model does not.
    """

    cu_seqlens: Tensor
    cu_keys: Tensor
    keys: Tensor | None
    index: Tensor
    groups: tuple[Group, ...]
    longest: int
    reach: int
    prefix: "Prefix | None" = None

    @property
    def linked(self) -> bool:
        return self.keys is not None

    def to(self, device: torch.device) -> "Segments":
        """Return the plan, of the host, on `device`; to a GPU it is copied without waiting."""
        cu_seqlens = moved(self.cu_seqlens, device)
        cu_keys, keys = cu_seqlens, None
        if self.keys is not None:
            cu_keys, keys = moved(self.cu_keys, device), moved(self.keys, device)
        return Segments(cu_seqlens, cu_keys, keys, moved(self.index, device), self.groups, self.longest, self.reach)


def plan(lengths: tuple[int, ...], cu_seqlens: Tensor, parents: tuple[int, ...] = ()) -> Segments:
    """Return the plan for segments of `lengths` tokens, on the device of cu_seqlens (its values are not read).

    parents[s] is -1 or the segment before s that s continues. Neighbours of like length and the same parent form a group, so
    segments should come sorted: longest first, those of one parent together.
    """
    parents = parents or (-1,) * len(lengths)
    device = cu_seqlens.device
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    prefixes = [lengths[p] if p >= 0 else 0 for p in parents]
    kinds = [(_padded(n), p) for n, p in zip(lengths, parents, strict=True)]
    groups: list[Group] = []
    index: list[npt.NDArray[np.int64]] = []
    at = first = 0
    while first < len(lengths):
        (length, parent), prefix = kinds[first], prefixes[first]
        most = max(1, PAIRS // (min(length, attention_cpu.BLOCK) * (prefix + length)))
        last = first + 1
        while last < min(len(lengths), first + most) and kinds[last] == kinds[first]:
            last += 1
        groups.append(Group(at, last - first, length, starts[parent] if prefix else 0, prefix, _padded(prefix)))
        for s in range(first, last):
            index += [np.arange(starts[s], starts[s + 1]), np.full(length - lengths[s], starts[-1])]
        first, at = last, at + (last - first) * length
    padded = torch.from_numpy(np.concatenate(index)).to(device)
    reach = [a + b for a, b in zip(prefixes, lengths, strict=True)]
    if not any(prefixes):
        return Segments(cu_seqlens, cu_seqlens, None, padded, tuple(groups), max(lengths), max(reach))
    pairs = [s for own, parent in enumerate(parents) for s in ((parent, own) if parent >= 0 else (own,))]
    keys = torch.from_numpy(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in pairs])).to(device)
    cu_keys = torch.from_numpy(np.cumsum([0, *reach]).astype(np.int32)).to(device)
    return Segments(cu_seqlens, cu_keys, keys, padded, tuple(groups), max(lengths), max(reach))


def of_lengths(lengths: tuple[int, ...], parents: tuple[int, ...]) -> Segments:
    """Return the plan for segments of `lengths` tokens laid end to end, on the host."""
    return plan(lengths, torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)), parents)


def _padded(length: int) -> int:
    """Return the length a segment is padded to: few different ones, for every shape of a product costs the CPU 3 ms to compile."""
    step = 32 if length <= 256 else 64
    return -(-length // step) * step


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1,H,T,D), key and value (1,K,T,D) -> (1,T,H,D).

    sliding_window: token i sees j where i - j < window; softcap: scores become cap tanh(score / cap) (Gemma 2); s_aux (H,): a
    logit per head beside the scores in the softmax (gpt-oss). Raises ValueError on what it does not compute exactly: masks,
    attention to what follows, values of another width than keys, any keyword it does not know.
    """
    refused = [name for name, x in unknown.items() if x is not None and name not in ("position_ids", "use_cache")]
    if attention_mask is not None or is_causal is False or key.shape != value.shape:
        refused.append("masks, attention to what follows, or values unlike keys")
    if refused:
        raise ValueError(f"flat attention does not compute {', '.join(refused)}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if segments.prefix is not None:
        q, k, v = segments.prefix.before(module.layer_idx, q, k, v)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    seed = int(torch.randint(2**62, ())) if dropout else 0
    terms = Terms(scale, sliding_window, softcap, dropout, seed)
    if q.is_cuda and attention_gpu.computes(q, s_aux, segments, terms):
        out = attention_gpu.attention(q, k, v, segments, terms)
    else:
        out = attention_cpu.attention(q, k, v, s_aux, segments, terms)
    if segments.prefix is not None:
        out = without(out, segments.prefix.pairs.shape[3], segments.prefix.places)
    return out[None], None


def register(opaque: bool = False) -> None:
    """Make "flat" known to transformers; a name its mask registry lacks builds no mask.

    opaque: compiled code calls it and does not trace it. It stays so, for transformers knows one "flat" for all models of the
    process, and those compiled before are still there.
    """
    from transformers import AttentionInterface

    global _opaque
    _opaque = _opaque or opaque
    AttentionInterface.register("flat", _closed(flat_attention) if _opaque else flat_attention)


@cache
def _closed(function: Any) -> Any:
    """Return the function as compiled code calls it without tracing it; the same one each time, on which that code depends."""
    return torch.compiler.disable(function)
