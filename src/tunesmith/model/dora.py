"""The row norms of DoRA's weights, ||W + s B A|| (Liu et al., 2024, arXiv 2402.09353, eq. 5), without forming B A, and kept while valid.

Of each row, with <., .> a row's inner product:

    ||W + s B A||^2 = ||W||^2 + 2 s <B, W A^T> + s^2 <B, B (A A^T)>

which costs two products as narrow as the rank. It is the same for all micro-batches of an optimizer step and for the second pass of
activation checkpointing; ||W||^2 is the same for as long as W is frozen.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Kept(NamedTuple):
    state: tuple[Any, ...]
    sources: list[Tensor]  # held, so that other numbers cannot come to lie at the same address unnoticed
    found: Tensor


_norms: "WeakKeyDictionary[nn.Module, _Kept]" = WeakKeyDictionary()
_squares: "WeakKeyDictionary[nn.Module, _Kept]" = WeakKeyDictionary()
_steps = 0  # of any optimizer: torch's fused ones, and those that write to `.data`, leave a tensor's version as it is


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def row_norms(
    layer: nn.Module, weight: Tensor, full: Callable[[], Tensor], a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """Return ||W + s B A|| of every row, (out,), in fp32 or wider, without gradient, as PEFT detaches it.

    layer: whose norms these are. weight: W as the layer holds it, perhaps quantised, `full()` gives it (out,in); a (r,in), b (out,r).
    Kept until a tensor, the scale or an optimizer moves. A write through `.data` outside an optimizer leaves no trace to go by.
    """

    def norms() -> Tensor:
        # frozen weights are out of an optimizer's reach
        squares = _kept(_squares, layer, [weight], _steps if weight.requires_grad else 0, lambda: _row_squares(full()))
        wide = squares.dtype
        with torch.autocast(a.device.type, enabled=False):  # it would mix dtypes
            across = (full() @ a.t()).to(wide)
            columns, rows = b.to(wide), a.to(wide)
            low = (2 * scale * across).addmm_(columns, rows @ rows.t(), alpha=scale**2)
            return squares.add((low * columns).sum(1)).clamp_(min=0).sqrt_()

    return _kept(_norms, layer, [weight, a, b], (_steps, scale), norms)


def _row_squares(weight: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=wide)
    return norms.square_()


def _kept(
    where: "WeakKeyDictionary[nn.Module, _Kept]",
    layer: nn.Module,
    sources: Sequence[Tensor],
    more: Any,
    compute: Callable[[], Tensor],
) -> Tensor:
    """Return what was computed from `sources` (and `more`) if they are as they were then; otherwise compute it anew."""
    if any(t.is_inference() for t in sources):  # they have no version
        return compute()
    held = [t.detach() if type(t) in (Tensor, nn.Parameter) else t for t in sources]
    state = (more, *((_place(t), t._version) for t in sources))
    kept = where.get(layer)
    if kept is None or kept.state != state:
        kept = where[layer] = _Kept(state, held, compute())
    return kept.found


def _place(tensor: Tensor) -> int:
    """Where the numbers lie; for tensors that wrap others (quantised ones), which they are."""
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)
