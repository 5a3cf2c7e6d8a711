"""Triton kernels for RMSNorm, rotary embedding and the gated activation: one pass over memory each, where plain torch takes several.

All compute in fp32, for tensors in fp32, bf16 or fp16, with 64-bit offsets. tunesmith.model.kernels tells where they are used. Triton's
interpreter on a CPU bears out their numbers; on a GPU neither these nor their speed have been measured.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # numbers a program of the norms holds at least
STRIPES = 512  # programs that share the rows where the gradient of a norm's weight is summed


@triton.jit  # type: ignore[untyped-decorator]
def _rms_forward(x, w, y, r, rows, width, eps, R: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    col = tl.arange(0, B)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    at = row[:, None] * width + col[None, :]
    h = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(w + col, mask=col < width, other=0.0).to(tl.float32)
    root = 1 / tl.sqrt(tl.sum(h * h, axis=1) / width + eps)
    tl.store(r + row, root, mask=row < rows)
    narrow = (h * root[:, None]).to(y.dtype.element_ty).to(tl.float32)  # the modules round here too
    tl.store(y + at, (narrow * weight[None, :]).to(y.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _rms_backward(x, w, r, dy, dx, dw, rows, width, step, SUMS: tl.constexpr, R: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program i takes the rows from i R on, every step rows; where SUMS their part of dw (programs,width) goes into row i of it."""
    pid = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, B)
    weight = tl.load(w + col, mask=col < width, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((B,), dtype=tl.float32)
    for start in range(pid * R, rows, step):
        row = start + tl.arange(0, R)
        mask = (row < rows)[:, None] & (col < width)[None, :]
        at = row[:, None] * width + col[None, :]
        h = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        root = tl.load(r + row, mask=row < rows, other=0.0)[:, None]
        along = tl.sum(g * h * weight, axis=1)[:, None] * root * root * root / width
        tl.store(dx + at, (g * weight * root - h * along).to(dx.dtype.element_ty), mask=mask)
        if SUMS:
            total += tl.sum(g * h * root, axis=0)
    if SUMS:
        tl.store(dw + pid * width + col, total, mask=col < width)


@triton.jit  # type: ignore[untyped-decorator]
def _rotary(q, cos, sin, out, heads, half, BACK: tl.constexpr, H: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program i turns all heads of token i."""
    token = tl.program_id(0).to(tl.int64)
    head, col = tl.arange(0, H)[:, None], tl.arange(0, B)[None, :]
    angle = token * 2 * half + col
    known = col < half
    c1 = tl.load(cos + angle, mask=known, other=0.0).to(tl.float32)
    c2 = tl.load(cos + angle + half, mask=known, other=0.0).to(tl.float32)
    s1 = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    s2 = tl.load(sin + angle + half, mask=known, other=0.0).to(tl.float32)
    mask = (head < heads) & known
    at = (token * heads + head) * 2 * half + col
    q1 = tl.load(q + at, mask=mask, other=0.0).to(tl.float32)
    q2 = tl.load(q + at + half, mask=mask, other=0.0).to(tl.float32)
    if BACK:
        o1, o2 = q1 * c1 + q2 * s2, q2 * c2 - q1 * s1
    else:
        o1, o2 = q1 * c1 - q2 * s1, q2 * c2 + q1 * s2
    tl.store(out + at, o1.to(out.dtype.element_ty), mask=mask)
    tl.store(out + at + half, o2.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _slope(g, GELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return s(u) and du/dg of act(g) = g s(u), s the logistic function: SiLU has u = g; GELU's (1 + tanh(z)) / 2 is s(2 z)."""
    if GELU:
        u = 1.5957691216057308 * (g + 0.044715 * g * g * g)  # 2 sqrt(2 / pi)
        du = 1.5957691216057308 * (1 + 0.134145 * g * g)
    else:
        u = g
        du = g * 0 + 1
    return 1 / (1 + tl.exp(-u)), du


@triton.jit  # type: ignore[untyped-decorator]
def _gated_forward(gate, up, out, n, GELU: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = at < n
    g = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    s, _ = _slope(g, GELU)
    y = g * s * tl.load(up + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_backward(d, gate, up, d_up, n, GELU: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """d, the gradient of act(gate) up, becomes that of gate."""
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = at < n
    g = tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(d + at, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=mask, other=0.0).to(tl.float32)
    s, du = _slope(g, GELU)
    tl.store(d_up + at, (dy * g * s).to(d_up.dtype.element_ty), mask=mask)
    tl.store(d + at, (dy * u * (s + g * s * (1 - s) * du)).to(d.dtype.element_ty), mask=mask)


def rms_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return w x r in x's dtype, and r = (mean(x^2) + eps)^(-1/2) of each row (..., 1) in fp32."""
    x, sizes = x.contiguous(), _tile(x)
    y, r = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    rows, width = r.numel(), x.shape[-1]
    _rms_forward[(triton.cdiv(rows, sizes["R"]),)](x, weight, y, r, rows, width, eps, **sizes)
    return y, r


def rms_backward(x: Tensor, weight: Tensor, r: Tensor, dy: Tensor, needs_dw: bool) -> tuple[Tensor, Tensor | None]:
    """Return dx, and dw summed in fp32, always in the same order; None where it is not needed."""
    x, dy, sizes = x.contiguous(), dy.contiguous(), _tile(x)
    rows, width = r.numel(), x.shape[-1]
    programs = triton.cdiv(rows, sizes["R"])
    programs = min(programs, STRIPES) if needs_dw else programs
    dx = torch.empty_like(x)
    dw = torch.empty(programs if needs_dw else 0, width, device=x.device)
    step = programs * sizes["R"]
    _rms_backward[(programs,)](x, weight, r, dy, dx, dw, rows, width, step, SUMS=needs_dw, **sizes)
    return dx, dw.sum(0).to(weight.dtype) if needs_dw else None


def rotary(q: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Return q cos + (-q2, q1) sin for q = (q1, q2) (N,T,H,D), cos and sin (N or 1,T,1,D); back: for its gradient, that of q."""
    q, (heads, width) = q.contiguous(), q.shape[-2:]
    cos, sin = (x.expand(*q.shape[:2], 1, width).contiguous() for x in (cos, sin))
    out = torch.empty_like(q)
    h, b = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    grid = (q.shape[0] * q.shape[1],)
    _rotary[grid](q, cos, sin, out, heads, width // 2, BACK=back, H=h, B=b, num_warps=_warps(h * b))
    return out


def gated(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """Return act(gate) up, act SiLU or GELU in its tanh form; both contiguous."""
    out, n = torch.empty_like(gate), gate.numel()
    _gated_forward[(triton.cdiv(n, 1024),)](gate, up, out, n, GELU=gelu, B=1024)
    return out


def gated_backward(d: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate, in d's memory, and of up, for d that of act(gate) up; all contiguous."""
    d_up, n = torch.empty_like(up), gate.numel()
    _gated_backward[(triton.cdiv(n, 1024),)](d, gate, up, d_up, n, GELU=gelu, B=1024)
    return d, d_up


def _tile(x: Tensor) -> dict[str, Any]:
    block = triton.next_power_of_2(x.shape[-1])
    return {"R": max(1, TILE // block), "B": block, "num_warps": _warps(block)}


def _warps(numbers: int) -> int:
    return min(16, max(4, numbers // 512))
