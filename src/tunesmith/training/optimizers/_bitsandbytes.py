"""What the optimizers of bitsandbytes share (Dettmers et al., 2022, arXiv 2110.02861).

8 bits: moments are stored as one of 256 numbers (the dynamic map) times the largest of their block of 256; a parameter of less
than 4,096 numbers keeps fp32. Paged (Dettmers et al., 2023, arXiv 2305.14314): moments lie in CUDA's unified memory, which moves
to the host's while the GPU's is needed otherwise.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.training.optimizers import count
from tunesmith.training.optimizers._arguments import Betas, Decay, Rate
from tunesmith.training.optimizers._groups import groups

LEAST, BLOCK = 4096, 256
PIECE = 1 << 18


def state_bytes(moments: int, shape: Sequence[int]) -> int:
    """Return the bytes of so many 8-bit moments of a parameter, with its blocks' largest numbers."""
    n = count(shape)
    return moments * (4 * n if n < LEAST else n + 4 * -(-n // BLOCK))


def check_package(name: str, device: str) -> None:
    """InputError where bitsandbytes is missing or does not run on the device."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{name} needs the package bitsandbytes: pip install 'tunesmith[quantize]'.")
    if device not in ("cpu", "cuda"):
        raise InputError(f"{name} runs on cpu and cuda, not on {device}; take optimizer: adafactor, which keeps less.")


def check_paged(name: str, device: str) -> None:
    """InputError where there is no memory that could be paged."""
    if device != "cuda":
        raise InputError(
            f"{name} moves its state between a GPU's memory and the host's, and train.device is {device}; take "
            f"optimizer: {name.removeprefix('paged_')}."
        )
    check_package(name, device)


def adamw(kind: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the `make` of bitsandbytes' AdamW of that class."""

    def make(
        masters: dict[str, Tensor],
        ratios: Mapping[str, float] | None = None,
        *,
        learning_rate: Rate,
        weight_decay: Decay = 0.0,
        betas: Betas = (0.9, 0.999),
        eps: Rate = 1e-8,
    ) -> torch.optim.Optimizer:
        import bitsandbytes

        for master in masters.values():
            master.data = master.data.contiguous()  # blocks are of numbers as they lie in memory
        parts = groups(masters, ratios or {}, weight_decay)
        options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        optimizer = getattr(bitsandbytes.optim, kind)(parts, **options)
        if all(m.device.type == "cpu" for m in masters.values()):
            optimizer.update_step = MethodType(partial(_in_pieces, optimizer.update_step), optimizer)
        return optimizer  # type: ignore[no-any-return]

    return make


def _in_pieces(whole: Any, optimizer: Any, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
    """Step a parameter in pieces of whole blocks, to the same bits: on a CPU bitsandbytes unpacks all that it is given at once."""
    from bitsandbytes.functional import optimizer_update_8bit_blockwise

    state = optimizer.state[p]
    if state["state1"].dtype != torch.uint8:
        whole(group, p, gindex, pindex)
        return
    state["step"] += 1
    assert p.grad is not None
    flat = [t.reshape(-1).split(PIECE) for t in (p.grad, p.data, state["state1"], state["state2"])]
    largest = [state[k].split(PIECE // BLOCK) for k in ("absmax1", "absmax2")]
    for g, w, m, v, m_max, v_max in zip(*flat, *largest, strict=True):
        optimizer_update_8bit_blockwise(
            optimizer.optimizer_name, g, w, m, v, *group["betas"], 0.0, 0.0, group["eps"], state["step"], group["lr"],
            state["qmap1"], state["qmap2"], m_max, v_max, group["weight_decay"], gnorm_scale=1.0,
        )  # fmt: skip
