"""Where the Triton kernels of kernels_gpu are used: on a GPU where, tried beside plain torch, they gave the same."""

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_agreeing: dict[torch.device, Any] = {}  # the module, or None where it is absent, fails or differs


def gpu_kernels(x: Tensor) -> Any:
    """Return the module kernels_gpu where it is to compute for x, otherwise None: for plain torch, which compilers fuse themselves."""
    if not x.is_cuda or x.dtype not in DTYPES or torch.compiler.is_compiling():
        return None
    return _agreeing.get(x.device)


def try_out(device: torch.device) -> None:
    """Find out whether the kernels can be used on a device; on one that is no GPU they are not."""
    if device.type != "cuda" or device in _agreeing:
        return
    _agreeing[device] = None
    try:
        from tunesmith.model import kernels_gpu

        if all(agree(kernels_gpu, device, dtype) for dtype in DTYPES):
            _agreeing[device] = kernels_gpu
    except Exception:  # no triton, or one that cannot build for this GPU: plain torch computes the same
        return


def agree(own: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels' results and gradients are plain torch's in float64 but for rounding to `dtype`, on odd sizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    pairs: list[tuple[Tensor, Tensor]] = []
    for width in (24, 1500):
        x, w, dy = draw(3, 7, width), draw(width), draw(3, 7, width)
        hx, hw = (t.double().requires_grad_() for t in (x, w))
        wanted = hw * hx * (hx.square().mean(-1, keepdim=True) + 1e-3).rsqrt()
        y, r = own.rms_forward(x, w, 1e-3)
        ours = own.rms_backward(x, w, r, dy, True)
        pairs += [(y, wanted), *zip(ours, torch.autograd.grad(wanted, (hx, hw), dy.double()), strict=True)]
        pairs.append((own.rms_backward(x, w, r, dy, False)[0], pairs[-2][1]))
    q, dq, angles = draw(2, 5, 3, 12), draw(2, 5, 3, 12), draw(1, 5, 1, 12)
    cos, sin = angles.cos(), angles.sin()
    hq = q.double().requires_grad_()
    turned = hq * cos.double() + torch.cat((-hq[..., 6:], hq[..., :6]), -1) * sin.double()
    pairs += [(own.rotary(q, cos, sin), turned)]
    pairs += [(own.rotary(dq, cos, sin, back=True), torch.autograd.grad(turned, hq, dq.double())[0])]
    for gelu in (False, True):
        gate, up, d = draw(7, 333), draw(7, 333), draw(7, 333)
        hg, hu = (t.double().requires_grad_() for t in (gate, up))
        act = torch.nn.functional.gelu(hg, approximate="tanh") if gelu else torch.nn.functional.silu(hg)
        pairs += [(own.gated(gate, up, gelu), act * hu)]
        theirs = torch.autograd.grad(act * hu, (hg, hu), d.double())
        pairs += zip(own.gated_backward(d.clone(), gate, up, gelu), theirs, strict=True)
    return all(_near(ours, wanted) for ours, wanted in pairs)


def _near(ours: Tensor, wanted: Tensor) -> bool:
    wanted = wanted.detach()
    eps = torch.finfo(ours.dtype).eps * (
        32 if ours.dtype == torch.float32 else 4
    )  # a GPU's fp32 exp and division round more
    allowed = eps * (wanted.abs() + wanted.abs().mean())
    return ours.shape == wanted.shape and bool(((ours.double() - wanted).abs() <= allowed).all())
