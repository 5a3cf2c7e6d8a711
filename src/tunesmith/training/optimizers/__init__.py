"""Optimizers, one file each: `make(masters, ratios, *, keyword arguments) -> torch.optim.Optimizer`, and

STATE_BYTES: bytes of state the optimizer keeps per trained parameter, its fp32 master and gradient not counted; a number, or where
that differs a function of a parameter's name and shape that returns the bytes of the whole parameter.
RATE: by what AdamW's learning rate is multiplied where the user names none (absent: 1).
SCHEDULE: the only schedule that goes with it (absent: any). PAGED: its state may leave the GPU's memory (absent: it does not).
check(device): InputError where it cannot run on such a device ("cpu", "cuda", "mps") or its package is missing (absent: it can).
masters: the fp32 masters by name. ratios: what the learning rate is multiplied by, by the master's name (absent: 1); every parameter
group says its own as "ratio".
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tunesmith import registry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

ELSEWHERE = {
    "adam": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "adam8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
    "lion_32bit": "lion",
    "lion_8bit": "lion",
    "paged_lion_32bit": "lion",
    "paged_lion_8bit": "lion",
    "schedule_free_adamw": "schedule_free",
    "schedulefree": "schedule_free",
    "adamw_schedulefree": "schedule_free",
}
"""What other tools call them."""


def per_parameter(
    make: Callable[[dict[str, "Tensor"]], "Optimizer"], masters: Mapping[str, "Tensor"]
) -> dict[str, "Optimizer"]:
    """Return an optimizer for every master alone, by its name; `make` is called with one master at a time.

    Their steps together are the step of one optimizer over all masters, bit by bit. masters.state_tensors and load_state_tensors
    take such a mapping in place of one optimizer, and name the state the same.
    """
    return {name: make({name: master}) for name, master in masters.items()}


def check(name: str, device: str) -> None:
    """InputError where the optimizer `name` cannot run on a device, or lacks its package."""
    own = getattr(registry.load("training.optimizers", name), "check", None)
    if own is not None:
        own(device)


def state_bytes(name: str, shapes: Iterable[tuple[str, Sequence[int]]]) -> int:
    """Return the bytes of state that the optimizer `name` keeps for parameters of these names and shapes."""
    each = registry.load("training.optimizers", name).STATE_BYTES
    sizes = ((each(n, shape) if callable(each) else each * count(shape)) for n, shape in shapes)
    return int(sum(sizes))


def on_device(name: str, shapes: Iterable[tuple[str, Sequence[int]]], device: str) -> int:
    """Return what of `state_bytes` the device's memory must hold: nothing of a paged optimizer's on a GPU."""
    paged = getattr(registry.load("training.optimizers", name), "PAGED", False)
    return 0 if paged and device == "cuda" else state_bytes(name, shapes)


def count(shape: Sequence[int]) -> int:
    """Return how many numbers a tensor of a shape has."""
    return math.prod(shape)
