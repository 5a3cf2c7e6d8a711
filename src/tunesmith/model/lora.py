"""Which linear layers, plain, quantised or PEFT's, are computed by tunesmith.model.linear instead of their own forward."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.dora import row_norms
from tunesmith.model.linear import Parts, project
from tunesmith.model.quantize import dequantized, is_quantized

PEFT_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt", "TorchaoLoraLinear")  # of peft.tuners.lora


def parts_of(layer: Any) -> Parts | None:
    """Return the parts of a linear layer, plain, quantised or PEFT's LoRA; None where it computes anything else than they say.

    That is: an adapter that is merged, a variant of LoRA other than DoRA, or several active ones of which one is DoRA or drops inputs.
    One that is switched off, or that other layers have and this one does not, leaves the base.
    """
    if not is_known(layer):
        return None
    base = getattr(layer, "base_layer", layer)
    weight, held = (None, base) if is_quantized(base) else (base.weight, None)
    plain = Parts(weight, base.bias, base=held)
    if base is layer:
        return plain
    if layer.merged:
        return None
    if layer.disable_adapters:
        return plain
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) > 1 and any(name in layer.lora_variant for name in names):
        return None
    every = [_with_adapter(plain, layer, base, name) for name in names]
    return _together(every) if every else plain


def _together(every: list[Parts | None]) -> Parts | None:
    """Return several adapters of one layer as one: A one below the other, s B side by side, and the sum of the s b_B."""
    if len(every) == 1:
        return every[0]
    known = [p for p in every if p is not None]
    if len(known) < len(every) or any(p.drop for p in known):
        return None
    a = torch.cat([p.a for p in known if p.a is not None])
    b = torch.cat([p.b * p.scale for p in known if p.b is not None], 1)
    biases = [p.b_bias * p.scale for p in known if p.b_bias is not None]
    return known[0]._replace(a=a, b=b, b_bias=sum(biases[1:], biases[0]) if biases else None, scale=1.0)


def _with_adapter(plain: Parts, layer: Any, base: Any, name: str) -> Parts | None:
    a, b, scale, dropout = layer.lora_A[name], layer.lora_B[name], layer.scaling[name], layer.lora_dropout[name]
    variant = type(layer.lora_variant[name]).__name__ if name in layer.lora_variant else None
    drop = 0.0
    if not isinstance(dropout, nn.Identity):
        if type(dropout) is not nn.Dropout or dropout.p >= 1:
            return None
        drop = dropout.p if dropout.training else 0.0
    if a.bias is not None or variant not in (None, "DoraLinearVariant"):
        return None
    magnitude = norms = None
    if variant is not None:
        magnitude = layer.lora_magnitude_vector[name].weight
        norms = row_norms(layer, base.weight, partial(_full, base, a.weight), a.weight, b.weight, scale)
    return plain._replace(
        a=a.weight, b=b.weight, b_bias=b.bias, magnitude=magnitude, norms=norms, scale=scale, drop=drop
    )


def _full(base: Any, like: Tensor) -> Tensor:
    return dequantized(base).to(like.dtype)


def is_known(layer: Any) -> bool:
    """Whether it is a linear layer, plain or quantised, or PEFT's LoRA on one; others, and layers on other layers, are not known."""
    base = getattr(layer, "base_layer", None)
    if base is None:
        return type(layer) is nn.Linear or is_quantized(layer)
    kind = type(layer)
    ours = kind.__name__ in PEFT_LAYERS and kind.__module__.startswith("peft.tuners.lora.")
    return ours and not layer.fan_in_fan_out and (type(base) is nn.Linear or is_quantized(base))


def fuse(model: nn.Module) -> int:
    """Give what can be computed faster with the same result its own forward and backward; return how many LoRA layers have one.

    Set on the instances, so PEFT and transformers still own saving, loading and merging. LoRA layers of any other kind keep PEFT's
    forward; norms, attention and feed-forward blocks are fused in tunesmith.model.fused.
    """
    from tunesmith.model.fused import fuse_blocks

    fused = 0
    for layer in model.modules():
        if hasattr(layer, "base_layer") and is_known(layer):
            layer.forward = partial(_forward, layer)
            fused += 1
    fuse_blocks(model)
    return fused


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    parts = parts_of(layer)
    if parts is None or args or kwargs or not fits(x, parts):
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    return project(x, [parts])[0]


def fits(x: Tensor, *layers: Parts) -> bool:
    """Whether the layers' numbers are of x's kind: mixed ones, and autocast, are left to PEFT."""
    same = all(t is None or t.dtype == x.dtype for p in layers for t in p[:6])
    return same and not torch.is_autocast_enabled(x.device.type)
