"""LoftQ (Li et al., 2023, arXiv 2310.08659): LoRA on a quantised base Q begins as the best low-rank part of what quantising lost, W - Q.

One round of the paper's alternation: Q is then what `model.quantize` makes of W, so that the saved adapter goes with that base in
plain PEFT. More rounds would need a base of their own beside it.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, attach_lora, lora_layers
from tunesmith.model.adapters._peft import ALL
from tunesmith.model.quantize import dequantized, is_quantized

QUANTIZE = "nf4"  # the base it is for, where model.quantize is left open
MERGES = False  # its A and B belong to Q: added to W they would count the loss of quantising twice


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
    """Attach LoRA to the quantised model such that Q + (alpha / r) B A begins as near to W as rank r can; alpha defaults to 2 r.

    W is read from the model's own folder. niter: rounds of the fast decomposition, 0 for the exact one. InputError where no
    targeted layer is quantised, or W is not to be found.
    """
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        layers_to_transform=layers_to_transform,
        experts=False,
    )
    if next(adapted.parameters()).device.type == "meta":
        return Attached(adapted)
    found = [(n, layer) for n, layer in lora_layers(adapted) if is_quantized(layer.get_base_layer())]
    if not found:
        raise InputError(
            "adapter loftq makes up for what quantising loses, but no layer it is attached to is quantised; set model.quantize: nf4."
        )
    lost = _begin(found, _stored(adapted.get_base_model().name_or_path), niter)
    said = f"LoftQ: A and B of rank {r} begin with {1 - lost:.0%} of what quantising lost of the weights (by squared error)"
    return Attached(adapted, notices=(said,))


def _begin(layers: list[tuple[str, Any]], stored: Callable[[str], Any], niter: int) -> float:
    """Set A and B of the layers; return the share of quantisation's squared error that is left."""
    import torch

    from tunesmith.model.adapters._factors import factors

    before = after = 0.0
    with torch.no_grad():
        for name, layer in layers:
            down, up, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
            quantized = dequantized(layer.get_base_layer()).float()
            loss = stored(f"{name}.weight").to(quantized) - quantized
            if len(down) > min(loss.shape):  # a router
                continue
            a, b = factors(loss, len(down), scale, niter)
            down.copy_(a)
            up.copy_(b)
            before += float(loss.square().sum())
            after += float((loss - scale * up.float() @ down.float()).square().sum())
    return after / max(before, 1e-30)


def _stored(base: str) -> Callable[[str], Any]:
    """Return a function from a parameter's name to its tensor in the model's safetensors files (a folder's or the hub's cache)."""
    from safetensors import safe_open

    from tunesmith.model.loading import unreachable
    from tunesmith.model.stream import weight_files

    try:
        files = weight_files(base, unreachable(base))
    except OSError as e:
        raise InputError(
            f"adapter loftq reads the weights of {base} in full precision, but finds no safetensors file."
        ) from e
    where: dict[str, str] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            where |= dict.fromkeys(file.keys(), path)

    def tensor(name: str) -> Any:
        # a checkpoint may lack the outermost name: GPT-2's has h.0..., the model transformer.h.0...
        key = next((k for k in (name, name.partition(".")[2]) if k in where), None)
        if key is None:
            raise InputError(
                f"adapter loftq finds no {name} in the files of {base}: its names differ from the model's."
            )
        with safe_open(where[key], "pt") as file:
            return file.get_tensor(key)

    return tensor
