"""Flat batches laid out in other ways: as padded rows, for models that cannot attend over segments, in halves by length, and with
virtual tokens before every sequence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Sequences of like length; positions count from 0 in each row, as models count them by themselves.

    take (B,L): the token of the flat batch at each place; real (B,L): which places are no padding; own (n,): the places,
    in the rows laid end to end, of the tokens this group answers for.
    """

    take: Tensor
    real: Tensor
    own: Tensor

    def to(self, device: torch.device) -> "Rows":
        return Rows(moved(self.take, device), moved(self.real, device), moved(self.own, device))


def moved(x: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; from the host to a GPU through pinned memory, so that the host does not wait for it."""
    pinned = device.type == "cuda" and not x.is_cuda
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


def lay_out(lengths: tuple[int, ...], parents: tuple[int, ...], turn: int | None = None) -> tuple[list[Rows], Numbers]:
    """Return the rows in groups, and where each token of the flat batch is among the groups' own tokens laid end to end, (T,).

    A row is a segment with its prefix before it; the first row that continues a prefix answers for the prefix's tokens, so each
    token counts once. A group's shortest row is at least half its longest (padding never more than doubles a batch), and no
    group has rows on both sides of `turn` tokens.
    """
    sequences = sorted(_sequences(lengths, parents), key=lambda pair: -len(pair[0]))
    groups: list[Rows] = []
    owned: list[Numbers] = []
    first = 0
    while first < len(sequences):
        longest = len(sequences[first][0])
        last = first
        while last < len(sequences) and 2 * (n := len(sequences[last][0])) >= longest:
            if turn is not None and n <= turn < longest:
                break
            last += 1
        rows, tokens = _rows(sequences[first:last])
        groups.append(rows)
        owned.append(tokens)
        first = last
    place = np.empty(sum(lengths), dtype=np.int64)
    place[np.concatenate(owned)] = np.arange(len(place))
    return groups, place


@dataclass(frozen=True)
class Half:
    """Some segments of a flat batch: their tokens in it, their lengths, and their parents among themselves."""

    tokens: Numbers
    lengths: tuple[int, ...]
    parents: tuple[int, ...]


def sequence_lengths(lengths: tuple[int, ...], parents: tuple[int, ...]) -> dict[int, int]:
    """Return the tokens of every whole sequence, its prefix's among them, by its last segment: one that nothing continues."""
    continued = set(parents)
    pairs = enumerate(zip(lengths, parents, strict=True))
    return {s: n + (lengths[p] if p >= 0 else 0) for s, (n, p) in pairs if s not in continued}


def halves(lengths: tuple[int, ...], parents: tuple[int, ...], turn: int) -> list[Half]:
    """Return the sequences of at most `turn` tokens, if any, and the longer ones, if any; a prefix that both continue is in both."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    totals = sequence_lengths(lengths, parents)
    found = []
    for longer in (False, True):
        ends = [s for s, n in totals.items() if (n > turn) == longer]
        if not ends:
            continue
        chosen = sorted({*ends, *(parents[s] for s in ends)} - {-1})
        tokens = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in chosen])
        among = tuple(chosen.index(parents[s]) if parents[s] >= 0 else -1 for s in chosen)
        found.append(Half(tokens, tuple(lengths[s] for s in chosen), among))
    return found


@dataclass(frozen=True)
class Preceded:
    """A flat batch with V virtual tokens before every sequence: `lengths` and `parents` of its segments.

    places: the tokens of the batch before which the virtual ones stand, ascending. The sequences that share nothing else continue
    one segment of virtual tokens, which is the first; every prefix that others continue has its own, for links are one level deep.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    places: tuple[int, ...]


def precede(lengths: tuple[int, ...], parents: tuple[int, ...], virtual: int) -> Preceded:
    """Return the layout in which `virtual` tokens stand before every sequence of the segments."""
    continued = set(parents)
    alone = any(p < 0 and s not in continued for s, p in enumerate(parents))
    shift = 1 if alone else 0
    found_lengths, found_parents, places = [virtual] * shift, [-1] * shift, [0] * shift
    start = 0
    for s, (n, p) in enumerate(zip(lengths, parents, strict=True)):
        heads = s in continued
        found_lengths.append(n + virtual if heads else n)
        found_parents.append(p + shift if p >= 0 else -1 if heads else 0)
        if heads:
            places.append(start)
        start += n
    return Preceded(tuple(found_lengths), tuple(found_parents), tuple(places))


def preceded(x: Tensor, virtual: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return x (T,...) with `virtual` (V,...) before each of `places`: (T + V len(places), ...)."""
    return _Preceded.apply(x, virtual.to(x.dtype), places)  # type: ignore[no-any-return]


def without(x: Tensor, virtual: int, places: tuple[int, ...]) -> Tensor:
    """Undo `preceded`: return the rows of x that are no virtual tokens'."""
    parts = _real(x, virtual, places)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _real(x: Tensor, virtual: int, places: tuple[int, ...]) -> list[Tensor]:
    starts = [place + (i + 1) * virtual for i, place in enumerate(places)]
    ends = [place + i * virtual for i, place in enumerate(places)]
    return [x[a:b] for a, b in zip([0, *starts], [*ends, len(x)], strict=True) if a < b]


class _Preceded(torch.autograd.Function):
    """The gradients of the virtual tokens' copies are added in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, virtual: Tensor, places: tuple[int, ...]) -> Tensor:
        ctx.virtual, ctx.places = len(virtual), places
        parts, last = [], 0
        for place in places:
            parts += [x[last:place], virtual]
            last = place
        return torch.cat([*parts, x[last:]])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, n, places = grads[0], ctx.virtual, ctx.places
        copies = [grad[place + i * n : place + (i + 1) * n] for i, place in enumerate(places)]
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = copies[0] if len(copies) == 1 else torch.stack(copies).sum(0, dtype=wide).to(grad.dtype)
        return without(grad, n, places) if ctx.needs_input_grad[0] else None, total, None


def _sequences(lengths: tuple[int, ...], parents: tuple[int, ...]) -> list[tuple[Numbers, int]]:
    """Return (the tokens of a whole sequence, how many of the first belong to another row) for every segment nothing continues."""
    ends = np.cumsum(lengths)
    segments = [np.arange(end - n, end) for end, n in zip(ends.tolist(), lengths, strict=True)]
    continued, seen, found = set(parents), set(), []
    for segment, parent in enumerate(parents):
        if segment in continued:
            continue
        if parent < 0:
            found.append((segments[segment], 0))
        else:
            found.append(
                (np.concatenate([segments[parent], segments[segment]]), lengths[parent] if parent in seen else 0)
            )
            seen.add(parent)
    return found


def _rows(sequences: list[tuple[Numbers, int]]) -> tuple[Rows, Numbers]:
    longest = len(sequences[0][0])
    take = np.zeros((len(sequences), longest), dtype=np.int64)
    real, own = np.zeros_like(take, dtype=np.bool_), np.zeros_like(take, dtype=np.bool_)
    for i, (tokens, borrowed) in enumerate(sequences):
        take[i, : len(tokens)] = tokens
        real[i, : len(tokens)] = True
        own[i, borrowed : len(tokens)] = True
    return Rows(torch.from_numpy(take), torch.from_numpy(real), torch.from_numpy(np.flatnonzero(own))), take[own]
