"""Linear layers that share their input, with LoRA, DoRA, dropout, biases and quantised weights, as one step of autograd.

Without DoRA, with l = s drop(x) A^T:

    y = x W^T + l B^T + bias + s b_B
    dB = dy^T l    d = s dy B    dA = d^T drop(x)    dx = dy W + drop(d A)    dW = dy^T x

DoRA (which has no b_B) multiplies each output feature by g = m / ||W + s B A|| (the norm detached, as in PEFT), which here meets W
and B and not the activations: y = x (g W)^T + l (g B)^T + bias. With dropout PEFT's is y = x W^T + (g - 1) drop(x) W^T + g l B^T + bias.

x (where more than dx is asked for), l and, where layers drop, the masks are kept; products for all layers of one input are one
product where nothing is dropped, and the dx add up in place. A quantised W is in full only while it is multiplied by.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.model.quantize import dequantized

TENSORS = 7  # of Parts, which come first
Grads = list[Tensor | None]
Kept = list[Tensor | None]


class Parts(NamedTuple):
    """One layer: weight (out,in) or None where it is quantised, bias (out,); LoRA's A (r,in), B (out,r), B's bias (out,), scale s.

    DoRA's magnitude m (out,) and row norms (out,), in fp32 or wider. drop: the probability with which LoRA's inputs are dropped now.
    base: the module that holds a quantised weight. Absent is None.
    """

    weight: Tensor | None
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    b_bias: Tensor | None = None
    magnitude: Tensor | None = None
    norms: Tensor | None = None
    scale: float = 1.0
    drop: float = 0.0
    base: Any = None

    def full(self, dtype: torch.dtype) -> Tensor:
        """Return W (out,in) in `dtype`."""
        return dequantized(self.base).to(dtype) if self.weight is None else self.weight

    def gain(self) -> Tensor | None:
        """Return g (out,), in fp32 or wider; None without DoRA."""
        return (
            None if self.magnitude is None or self.norms is None else self.magnitude.to(self.norms.dtype) / self.norms
        )

    def added(self) -> Tensor | None:
        """Return what is added to every row of the output: bias + s b_B."""
        if self.b_bias is None:
            return self.bias
        own = self.b_bias * self.scale
        return own if self.bias is None else own.add_(self.bias)


def project(x: Tensor, layers: Sequence[Parts]) -> tuple[Tensor, ...]:
    """Return every layer's output for the same input x (..., in): (..., out) each."""
    fixed, tensors = flatten(layers)
    return _Project.apply(x, fixed, *tensors)  # type: ignore[no-any-return]


def flatten(layers: Sequence[Parts]) -> tuple[tuple[Any, ...], list[Any]]:
    """Return what is no tensor, a tuple per layer, and layer by layer the tensors, as Group takes them."""
    return tuple(p[TENSORS:] for p in layers), [t for p in layers for t in p[:TENSORS]]


class Group:
    """The mathematics of layers that share their input, for use inside an autograd function; what is given as `flatten` gives it."""

    def __init__(self, fixed: Sequence[Any], tensors: Sequence[Any]) -> None:
        self.parts = [Parts(*tensors[TENSORS * i : TENSORS * (i + 1)], *more) for i, more in enumerate(fixed)]
        self.shared = [p for p in self.parts if p.a is not None and not p.drop]  # whose l are one product

    def forward(self, x: Tensor) -> tuple[list[Tensor], Kept]:
        """Return the layers' outputs (T,out) for x (T,in), and what `backward` needs.

        That is: l of the layers that do not drop (T, sum of r); of every layer its mask, or None; and of DoRA its output, or what it
        multiplied by g - 1 where it drops.
        """
        low = x.new_empty(len(x), 0)
        if self.shared:
            low = _scaled(x @ _rows_of_a(self.shared).t(), self.shared)
        lows, outs = iter(_split(low, self.shared)), []
        masks: Kept = []
        products: Kept = []
        for p in self.parts:
            dropped, mask = _drop(x, p.drop) if p.drop else (x, None)
            own = None
            if p.a is not None:
                own = (dropped @ p.a.t()).mul_(p.scale) if p.drop else next(lows)
            out, product = _output(x, dropped, own, p)
            outs.append(out)
            masks.append(mask)
            products.append(product)
        return outs, [low, *masks, *products]

    def backward(
        self, x: Tensor, kept: Kept, grads: Sequence[Tensor], needs: Sequence[bool], needs_x: bool = True
    ) -> tuple[Tensor | None, Grads]:
        """Return dx (T,in) and the gradients of the tensors, None where `needs` (one flag per tensor) says so."""
        dx: Tensor | None = None
        found: Grads = [None] * len(needs)
        low, masks, products = kept[0], kept[1 : 1 + len(self.parts)], kept[1 + len(self.parts) :]
        assert low is not None
        lows, back = iter(_split(low, self.shared)), []
        every = zip(self.parts, grads, masks, products, strict=True)
        for i, (p, dy, mask, product) in enumerate(every):
            own = slice(TENSORS * i, TENSORS * (i + 1))
            g, w = p.gain(), p.full(x.dtype) if needs_x else None
            if w is not None:
                wg = w if g is None or mask is not None else _times(w, g)
                dx = dy @ wg if dx is None else dx.addmm_(dy, wg)
            if mask is None:
                grads_of, d = _gradients(p, g, x, x, next(lows) if p.a is not None else None, dy, product, needs[own])
                back += [] if d is None else [d]
            else:
                dropped = _masked(x, mask, p.drop)
                assert p.a is not None
                l_own = (dropped @ p.a.t()).mul_(p.scale)
                grads_of, d = _gradients(p, g, x, dropped, l_own, dy, product, needs[own])
                assert d is not None
                grads_of[2] = d.t() @ dropped if needs[own][2] else None
                if dx is not None:
                    through = d @ p.a
                    if w is not None and g is not None:
                        through.addmm_(dy, _times(w, g - 1))
                    dx.add_(_masked(through, mask, p.drop))
            found[own] = grads_of
        if back:
            d = torch.cat(back, 1) if len(back) > 1 else back[0]
            rows = _rows_of_a(self.shared)
            if any(needs[TENSORS * i + 2] for i in self._shared_numbers()):
                da = (d.t() @ x).split([len(p.a) for p in self.shared if p.a is not None])
                for i, own_da in zip(self._shared_numbers(), da, strict=True):
                    found[TENSORS * i + 2] = own_da
            dx = None if dx is None else dx.addmm_(d, rows)
        return dx, found

    def _shared_numbers(self) -> Iterator[int]:
        return (i for i, p in enumerate(self.parts) if p.a is not None and not p.drop)


def _output(x: Tensor, dropped: Tensor, low: Tensor | None, p: Parts) -> tuple[Tensor, Tensor | None]:
    """Return a layer's output (T,out) and, for DoRA, what the gradient of m is taken from."""
    g, w = p.gain(), p.full(x.dtype)
    if g is None or p.b is None or low is None:
        out = F.linear(x, w, p.added())
        return (out if p.b is None or low is None else out.addmm_(low, _across(p.b))), None
    if not p.drop:
        out = F.linear(x, _times(w, g), p.bias).addmm_(low, _across(_times(p.b, g)))
        return out, out
    product = F.linear(dropped, w)
    out = F.linear(x, w, p.bias).addcmul_(product, (g - 1).to(x.dtype))
    return out.addmm_(low, _across(_times(p.b, g))), product


def _gradients(
    p: Parts,
    g: Tensor | None,
    x: Tensor,
    dropped: Tensor,
    low: Tensor | None,
    dy: Tensor,
    product: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Grads, Tensor | None]:
    """Return the gradients of one layer's tensors but for A's, and d (T,r), the gradient of drop(x) A^T."""
    found: Grads = [None] * TENSORS
    if needs[0]:
        dw = dy.t() @ x
        if g is not None:
            dw = _times(dw, g) if dropped is x else dw.add_(_times(dy.t() @ dropped, g - 1))
        found[0] = dw
    total = dy.sum(0) if needs[1] or needs[4] or needs[5] else None
    if needs[1]:
        found[1] = total
    if p.b is None or low is None:
        return found, None
    raw = (low.t().contiguous() @ dy).t() if needs[3] or needs[5] else None
    if needs[3] and raw is not None:
        found[3] = raw if g is None else _times(raw, g)
    if needs[4] and total is not None:
        found[4] = total * p.scale
    if needs[5] and product is not None and raw is not None and total is not None:
        found[5] = _of_magnitude(p, dy, product, raw, total, dropped is not x)
    return found, (dy @ (p.b if g is None else _times(p.b, g))).mul_(p.scale)


def _of_magnitude(p: Parts, dy: Tensor, product: Tensor, raw: Tensor, total: Tensor, drops: bool) -> Tensor:
    """Return dm = dg / ||W + s B A|| with dg the sum over tokens of dy z, z = drop(x) W^T + l B^T.

    Without dropout z = (y - bias) / g is in the output y (where m is 0 nothing of it is left, and dm is 0 here). raw: dy^T l (out,r);
    total: the sum of dy over tokens.
    """
    assert p.magnitude is not None
    assert p.norms is not None
    assert p.b is not None
    wide = p.norms.dtype
    # it adds up in fp32 anyway; asked for an fp32 result a CPU takes three times as long
    along = (dy * product).sum(0).to(wide)
    if not drops:
        if p.bias is not None:
            along -= total.to(wide) * p.bias
        return (along / p.magnitude).masked_fill_(p.magnitude == 0, 0).to(p.magnitude.dtype)
    along += (raw.to(wide) * p.b).sum(1)
    return (along / p.norms).to(p.magnitude.dtype)


def _times(rows: Tensor, g: Tensor) -> Tensor:
    """Return the rows of a matrix (out,n), each times its entry of g (out,): in the matrix's dtype, for mixed ones cost ten times."""
    return rows * g.to(rows.dtype)[:, None]


def _drop(x: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Return dropout of x and the mask of what was kept, drawn as torch's own dropout draws it on x's device, one byte an entry."""
    if x.is_cuda:
        return torch.native_dropout(x, probability, True)
    mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - probability)
    return _masked(x, mask, probability), mask


def _masked(x: Tensor, mask: Tensor, probability: float) -> Tensor:
    """Return x as dropout with that mask leaves it; as whole numbers the mask is met three times as fast on a CPU."""
    return (x * mask.view(torch.int8)).mul_(1 / (1 - probability))


def _rows_of_a(layers: list[Parts]) -> Tensor:
    every = [p.a for p in layers if p.a is not None]
    return torch.cat(every) if len(every) > 1 else every[0]


def _split(low: Tensor, layers: list[Parts]) -> tuple[Tensor, ...]:
    return low.split([len(p.a) for p in layers if p.a is not None], 1) if layers else ()


def _scaled(low: Tensor, layers: list[Parts]) -> Tensor:
    """Multiply each layer's columns by its scale, in place."""
    if len({p.scale for p in layers}) == 1:
        return low.mul_(layers[0].scale)
    for part, p in zip(_split(low, layers), layers, strict=True):
        part.mul_(p.scale)
    return low


def _across(b: Tensor) -> Tensor:
    """B^T; on a CPU laid out row by row, which halves the time of the narrow product that reads it (0.76 -> 0.42 ms)."""
    return b.t() if b.is_cuda else b.t().contiguous()


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fixed: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        group = Group(fixed, tensors)
        outs, kept = group.forward(flat)
        if not any(ctx.needs_input_grad[2:]) and all(p.a is None for p in group.parts):
            flat = flat.new_empty(0)  # dx does not need it
        ctx.save_for_backward(flat, *kept, *tensors)
        ctx.fixed, ctx.shape = fixed, x.shape
        return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        kept = 1 + 2 * len(ctx.fixed)
        flat = [g.reshape(-1, g.shape[-1]) for g in grads]
        needs_x, _, *needs = ctx.needs_input_grad
        dx, found = Group(ctx.fixed, saved[kept:]).backward(x, saved[:kept], flat, needs, needs_x)
        return (None if dx is None else dx.view(ctx.shape), None, *found)
