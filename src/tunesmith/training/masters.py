"""fp32 masters of the trained weights, which the optimizer steps: the model computes with copies in its own dtype."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
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


def update(
    optimizer: torch.optim.Optimizer, grads: list[Tensor], divisor: Tensor, skip: Tensor, keep: bool = False
) -> None:
    """Step with every gradient divided by `divisor` (); where `skip` () is 1 no parameter, moment or step count changes.

    The fused steps take both from the device; for others `skip` is read, which waits for the device. A product with 0 would not do:
    0 x NaN is NaN. What is left in `grads` is divided too; keep: whatever the optimizer does, they hold just that.
    """
    fused: Any = optimizer if optimizer.defaults.get("fused") else None
    if fused is None and skip.item():
        return
    wide = any(g.dtype == torch.float64 for g in grads)
    if fused is None or wide:  # the fused steps take the divisor in fp32
        torch._foreach_div_(grads, divisor)
    if fused is not None:
        fused.found_inf, fused.grad_scale = skip, None if wide else divisor
    kept = [g.clone() for g in grads] if keep and not fused else []  # schedule-free's step works in them
    optimizer.step()
    if kept:
        torch._foreach_copy_(grads, kept)


Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
"""One for all masters, or by a master's name its own (optimizers.per_parameter)."""

GROUP_STATE = ("k", "weight_sum", "lr_max")  # what schedule-free keeps by group
MAPS = ("qmap1", "qmap2")  # what 8 bits mean to bitsandbytes, the same for all parameters


def state_tensors(optimizer: Optimizers, masters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors named "<parameter>/<state>" (code-free, for safetensors).

    What a group keeps is told of each of its parameters. Python's numbers become int64 or float64, which no tensor () of torch's is.
    """
    state = {}
    for name, (own, group) in _owners(optimizer, masters).items():
        values = {k: v for k, v in own.state.get(masters[name], {}).items() if k not in MAPS}
        if values:
            values |= {k: group[k] for k in GROUP_STATE if k in group}
        for key, value in values.items():
            state[f"{name}/{key}"] = value if isinstance(value, Tensor) else _tensor(value)
    return state


def load_state_tensors(optimizer: Optimizers, masters: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """The inverse of state_tensors, for one optimizer or many, whichever the state is of."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in masters}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        found[name][kind] = value
    for name, (own, group) in _owners(optimizer, masters).items():
        group.update({k: found[name].pop(k).item() for k in GROUP_STATE if k in found[name]})
        own.state.pop(masters[name], None)
        if found[name]:
            own.state[masters[name]] = _loaded(own, group, masters[name], found[name])


def _loaded(optimizer: Any, group: dict[str, Any], master: Tensor, found: dict[str, Tensor]) -> dict[str, Any]:
    """Return a parameter's state as copies, for these may be a file's own pages."""
    if hasattr(optimizer, "init_state"):  # bitsandbytes: its buffers may be paged memory
        optimizer.init_state(group, master, 0, 0)
        made: dict[str, Any] = optimizer.state[master]
        return made | {k: made[k].copy_(v) if isinstance(made[k], Tensor) else v.item() for k, v in found.items()}
    # torch keeps its count of steps on the host, beside the parameter for the fused step only
    alone = master.device if group.get("fused") else torch.device("cpu")
    return {
        k: v.item()
        if v.dim() == 0 and v.dtype in (torch.int64, torch.float64)
        else v.to(master.device if v.dim() else alone, copy=True)
        for k, v in found.items()
    }


def _tensor(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)


def _owners(
    optimizer: Optimizers, masters: dict[str, Tensor]
) -> dict[str, tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """Return the optimizer of every master by its name, and the master's group in it."""
    groups = {id(p): (own, group) for own in _all(optimizer) for group in own.param_groups for p in group["params"]}
    return {name: groups[id(master)] for name, master in masters.items()}


def _all(optimizer: Optimizers) -> list[torch.optim.Optimizer]:
    return list(optimizer.values()) if isinstance(optimizer, Mapping) else [optimizer]


@contextmanager
def evaluated(optimizer: Optimizers, masters: Masters) -> Iterator[None]:
    """Within, the model holds the weights that are evaluated and kept; after it again, bit for bit, those that are trained.

    They differ under an optimizer that averages (schedule-free). Its own way back would round.
    """
    averaging: list[Any] = [own for own in _all(optimizer) if hasattr(own, "eval")]
    trained = {name: m.detach().clone() for name, m in masters.masters.items()} if averaging else {}
    settle(optimizer, masters)
    try:
        yield
    finally:
        for own in averaging:
            own.train()
        if averaging:
            masters.load(trained)


def settle(optimizer: Optimizers, masters: Masters) -> None:
    """Leave in the model the weights that are evaluated and kept, for good: training is done."""
    averaging: list[Any] = [own for own in _all(optimizer) if hasattr(own, "eval")]
    for own in averaging:
        own.eval()
    if averaging:
        masters.refresh()
