"""PiSSA (Meng et al., 2024, arXiv 2404.02948): A and B begin as W's largest singular vectors, and W keeps the rest.

W_res = W - s B0 A0 is frozen. The result is saved as s (B A - B0 A0), LoRA of twice the rank on the untouched W, as PEFT converts it.
"""

import copy
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import (
    Alpha,
    Dropout,
    Rank,
    Targets,
    attach_lora,
    left_out,
    lora_layers,
    refuse_quantized,
)
from tunesmith.model.adapters._peft import ALL

SAVED = 2  # times the trained numbers are in the file: as they are, and as they began


def attach(
    model: Any,
    *,
    r: Rank = 16,
    alpha: Alpha | None = None,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    layers_to_transform: list[int] | None = None,
    niter: Annotated[int, Field(ge=0)] = 16,
) -> Attached:
    """Attach A and B with W's r largest singular directions and leave the rest in W; alpha defaults to r (a scale of 1), the paper's.

    niter: rounds of the fast decomposition, 0 for the exact one. InputError on a quantised model. Experts stay as they are.
    """
    refuse_quantized(model, "adapter pissa decomposes the weights")
    alpha = float(r) if alpha is None else alpha
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        layers_to_transform=layers_to_transform,
        experts=False,
    )
    if next(adapted.parameters()).device.type != "meta":
        _decompose(adapted, niter)
    start = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    adapted.save_pretrained = partial(_save, adapted, start)
    return Attached(adapted, notices=left_out(adapted, "PiSSA"))


def _decompose(adapted: Any, niter: int) -> None:
    import torch

    from tunesmith.model.adapters._factors import factors

    with torch.no_grad():
        for _, layer in lora_layers(adapted):
            weight, scale = layer.get_base_layer().weight, layer.scaling["default"]
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            whole = (weight.t() if layer.fan_in_fan_out else weight).float()
            if len(down) > min(whole.shape):  # a router
                continue
            a, b = factors(whole, len(down), scale, niter)
            down.copy_(a)
            up.copy_(b)
            # of A and B as they are rounded to the model's dtype, so that the model begins as it was
            rest = whole - scale * up.float() @ down.float()
            weight.copy_(rest.t() if layer.fan_in_fan_out else rest)


def _save(adapted: Any, start: dict[str, Any], folder: Any, **arguments: Any) -> None:
    """Save as PEFT does, converted: A and B of twice the rank, [A; A0] and [B, -B0], for the untouched weights."""
    import torch

    state = adapted.state_dict()
    for name, before in ((n, t) for n, t in start.items() if ".lora_" in n):  # not a reward model's head
        down = ".lora_A." in name
        before = before.to(state[name].device)
        state[name] = torch.cat((state[name], before if down else -before), 0 if down else 1)
    config = adapted.peft_config["default"]
    double = copy.deepcopy(config)
    double.r, double.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    adapted.peft_config["default"] = double
    try:
        type(adapted).save_pretrained(adapted, folder, state_dict=state, **arguments)
    finally:
        adapted.peft_config["default"] = config
