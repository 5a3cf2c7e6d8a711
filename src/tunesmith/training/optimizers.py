"""Optimizers, and the fp32 masters they step: trained weights are kept in fp32, the model computes with copies in its own dtype."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn


class Masters:
    """fp32 masters of a policy's trained parameters, by name. In an fp32 model the parameters are their own masters.

    Working gradients are added to the masters' in fp32 as soon as they are complete, so that micro-batches lose nothing to rounding
    and a working gradient lives no longer than its layer's backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self.working = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, p in self.working.items():
            if p.dtype in (torch.float32, torch.float64):
                self.masters[name] = p
                continue
            master = p.detach().float().requires_grad_()
            self.masters[name] = master
            p.register_post_accumulate_grad_hook(lambda q, m=master: _move_grad(q, m))

    def zero_grad(self) -> None:
        """Drop all gradients, those of a backward that was broken off too."""
        for tensors in (self.masters, self.working):
            for t in tensors.values():
                t.grad = None

    def grads(self) -> list[Tensor]:
        """Return the gradients of the masters that have one, in the masters' order."""
        return [m.grad for m in self.masters.values() if m.grad is not None]

    def fill_missing_grads(self) -> None:
        """Parameters no token reached get a zero gradient, so that every step sees the same parameters."""
        for m in self.masters.values():
            if m.grad is None:
                m.grad = torch.zeros_like(m)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the Euclidean norm of all trained weights, ()."""
        return torch.nn.utils.get_total_norm(list(self.masters.values()))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the model's working parameters."""
        pairs = [(p, self.masters[n]) for n, p in self.working.items() if p is not self.masters[n]]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the masters (same names and shapes) and refresh the model."""
        for name, master in self.masters.items():
            master.copy_(tensors[name])
        self.refresh()


def _move_grad(working: Tensor, master: Tensor) -> None:
    assert working.grad is not None
    if master.grad is None:
        master.grad = working.grad.float()
    else:
        master.grad.add_(working.grad)
    working.grad = None


def adamw(
    masters: dict[str, Tensor],
    *,
    learning_rate: Annotated[float, Field(gt=0)],
    weight_decay: Annotated[float, Field(ge=0)] = 0.0,
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999),
    eps: Annotated[float, Field(gt=0)] = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019, arXiv 1711.05101), torch's fused step; matrices decay, vectors (norms, biases) never do."""
    groups = [
        {"params": [m for m in masters.values() if m.ndim >= 2], "weight_decay": weight_decay},
        {"params": [m for m in masters.values() if m.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(m.device.type in ("cpu", "cuda") for m in masters.values())
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=eps, fused=fused)


OPTIMIZERS = {"adamw": adamw}


def update(optimizer: torch.optim.Optimizer, grads: list[Tensor], divisor: Tensor, skip: Tensor) -> None:
    """Step with every gradient divided by `divisor` (); where `skip` () is 1 no parameter, moment or step count changes.

    The fused steps take both from the device; for others `skip` is read, which waits for the device. A product with 0 would not do:
    0 x NaN is NaN.
    """
    fused: Any = optimizer if optimizer.defaults.get("fused") else None
    if fused is None and skip.item():
        return
    wide = any(g.dtype == torch.float64 for g in grads)
    if fused is None or wide:  # the fused steps take the divisor in fp32
        torch._foreach_div_(grads, divisor)
    if fused is not None:
        fused.found_inf, fused.grad_scale = skip, None if wide else divisor
    optimizer.step()


def state_tensors(optimizer: torch.optim.Optimizer, masters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the optimizer's per-parameter state as flat tensors named "<parameter>/<state>" (code-free, for safetensors)."""
    state = {}
    for name, master in masters.items():
        for key, value in optimizer.state.get(master, {}).items():
            state[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return state


def load_state_tensors(optimizer: torch.optim.Optimizer, masters: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """The inverse of state_tensors."""
    for name, master in masters.items():
        prefix = f"{name}/"
        own = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and "/" not in k[len(prefix) :]
        }
        if own:
            # torch keeps `step` in fp32, beside the parameter for the fused step; a copy, for these may be a file's own pages
            optimizer.state[master] = {k: v.to(master.device, copy=True) for k, v in own.items()}
