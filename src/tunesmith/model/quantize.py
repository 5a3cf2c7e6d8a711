"""Quantised bases: their names, what refuses them, and the weights of quantised layers in full.

nf4 and fp4 (Dettmers et al., QLoRA, 2023, arXiv 2305.14314): blocks of 64 numbers, each 4 bits that look up one of 16 values,
times the block's largest number; `double` keeps those in 8 bits too, less their mean, in blocks of 256: 4.127 bits a weight.
int8 and torchao-int8: a whole number from -127 to 127, times a scale per row. The layers are bitsandbytes' or torchao's, which
PEFT attaches adapters to (tunesmith.model.quantized_layers makes them, tunesmith.model.stream loads them).
"""

import copy
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tunesmith.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

Name = Literal["nf4", "fp4", "int8", "torchao-int8", "torchao-int4", "none"]
STORED = (
    "bitsandbytes",
    "mxfp4",
    "fp8",
)  # kinds of quantised files that train: mxfp4 and fp8 are read in full by transformers
TRAINS_BASE = ("full", "freeze")  # adapters that train weights which quantising freezes


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a base is quantised: nf4, fp4, int8 or torchao-int8; `double` (4 bits only): the blocks' scales are quantised too."""

    name: str
    double: bool = True

    def describe(self) -> dict[str, Any]:
        """Return it as transformers' `quantization_config` says it: BitsAndBytesConfig's keys, or TorchAoConfig's."""
        if self.name == "torchao-int8":
            kind = {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 2}
            return {"quant_method": "torchao", "quant_type": {"default": kind}}
        if self.name == "int8":
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}
        four = {"bnb_4bit_quant_type": self.name, "bnb_4bit_use_double_quant": self.double}
        return {"quant_method": "bitsandbytes", "load_in_4bit": True, **four}


def described(config: dict[str, Any]) -> Quantization | None:
    """The inverse of Quantization.describe; None for what it never says."""
    if config.get("quant_method") == "torchao":
        return Quantization("torchao-int8")
    if config.get("load_in_8bit"):
        return Quantization("int8")
    name = config.get("bnb_4bit_quant_type")
    return Quantization(name, bool(config.get("bnb_4bit_use_double_quant"))) if name in ("nf4", "fp4") else None


def asked(name: str | None, own: Quantization | None) -> Quantization | None:
    """Return how a base is held for `name` (a Name; None: as its adapter says, `own`); InputError for a name there is not."""
    if name is not None and name not in get_args(Name):
        raise InputError(f'there is no quantisation "{name}".{did_you_mean(name, get_args(Name))}')
    if name is None or (own is not None and name == own.name):
        return own
    return None if name == "none" else Quantization(name)


def check(how: Quantization | None, config: Any, base: str, device: str, key: str = "model.quantize") -> None:
    """InputError where a base with a transformers config cannot be quantised so on a device (cpu, cuda, mps), or is stored in a way
    that does not train. key: what asks for it."""
    stored_as = getattr(config, "quantization_config", None) or {}
    stored_as = stored_as if isinstance(stored_as, dict) else stored_as.to_dict()
    kind = str(getattr(stored_as.get("quant_method"), "value", stored_as.get("quant_method"))) if stored_as else None
    if kind is not None and kind not in STORED:
        raise InputError(
            f"the model {base} is stored quantised with {kind}, which is not trained here; take the model it was made from, with "
            f"{key}: nf4."
        )
    if kind is not None and how is not None:
        raise InputError(f"the model {base} is stored quantised with {kind} already; leave {key} out.")
    if how is None and kind != "bitsandbytes":
        return
    name = how.name if how is not None else "bitsandbytes"
    if name == "torchao-int4":
        raise InputError(
            f"{key} torchao-int4 does not train: torchao's 4-bit products have no gradient, and its weights need a GPU's own "
            "package (mslk); take nf4, which is as small."
        )
    if device == "mps":
        raise InputError(f"{key} {name} has no kernels for mps; take the device cpu, or leave {key} out.")
    package, extra = ("torchao", "torchao") if name.startswith("torchao") else ("bitsandbytes", "quantize")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{key} {name} needs {package}: pip install 'tunesmith[{extra}]'.")


def check_adapter(how: Quantization | None, adapter: str) -> None:
    """InputError for an adapter that trains the weights which quantising freezes."""
    if how is not None and adapter in TRAINS_BASE:
        raise InputError(
            f"model.quantize {how.name} freezes the model's weights, and adapter {adapter} trains them; take adapter: lora, or leave "
            "model.quantize out."
        )


def is_quantized(layer: Any) -> bool:
    """Whether a linear layer's weight is held quantised: bitsandbytes' Params4bit and Int8Params, or a tensor of torchao's."""
    return kind_of(getattr(layer, "weight", None)) is not None


def kind_of(weight: Any) -> Literal["Params4bit", "Int8Params", "torchao"] | None:
    """Return how a parameter is held; None in full."""
    kind = type(weight)
    if kind.__name__ == "Params4bit":
        return "Params4bit"
    if kind.__name__ == "Int8Params":
        return "Int8Params"
    return "torchao" if kind.__module__.startswith("torchao.") else None


def dequantized(layer: Any) -> "Tensor":
    """Return a quantised layer's weight (out, in) in the compute dtype, in memory of its own; any other layer's weight as it is.

    The numbers are those that bitsandbytes and torchao mean. (On a CPU bitsandbytes 0.50 takes every row to begin a block: where rows
    are no multiple of 64 long it gives other numbers than those that were quantised, so the weight is read in rows that are.)
    """
    weight = layer.weight
    kind = kind_of(weight)
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        state, n = weight.quant_state, weight.quant_state.shape.numel()
        if weight.device.type == "cpu" and state.shape[-1] % state.blocksize:
            flat, width = copy.copy(state), n if n % state.blocksize else state.blocksize
            flat.shape = (n // width, width)
            return dequantize_4bit(weight.data, flat).view(state.shape)  # type: ignore[no-any-return]
        return dequantize_4bit(weight.data, state)  # type: ignore[no-any-return]
    if kind == "Int8Params":
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.to(layer.compute_dtype, copy=True).mul_(scale[:, None] * (1 / 127))  # type: ignore[no-any-return]
    return weight.dequantize() if kind else weight  # type: ignore[no-any-return]


def stored(parameter: Any) -> "list[Tensor]":
    """Return the plain tensors that hold a parameter: of a quantised one its numbers and their scales."""
    kind = kind_of(parameter)
    if kind == "Params4bit":
        state = parameter.quant_state
        second = [state.state2.absmax, state.offset] if state.nested else []
        return [parameter.data, state.absmax, *second]
    if kind == "Int8Params":
        return [parameter.data] if parameter.SCB is None else [parameter.data, parameter.SCB]
    if kind == "torchao":
        found = [getattr(parameter, name) for name in parameter.__tensor_flatten__()[0]]
        return [t for t in found if t is not None]
    return [parameter.data]


def count(parameters: Iterable[Any]) -> int:
    """Return how many numbers the parameters stand for: in 4 bits two to a byte."""
    return sum(p.quant_state.shape.numel() if kind_of(p) == "Params4bit" else p.numel() for p in parameters)


def weight_bytes(parameters: Iterable[Any], size: int) -> int:
    """Return the bytes the parameters take where those that are not quantised have `size` bytes each; on any device, "meta" too."""
    held = [(kind_of(p), p) for p in parameters]
    return sum(sum(t.nbytes for t in stored(p)) if kind else p.numel() * size for kind, p in held)


def sentence(how: Quantization, share: float, size: int, dtype: str, model: Any) -> str:
    """Return for people what quantising does to a model: the share of its weights that it reaches, and the bytes of all of them."""
    stacked = any(p.ndim == 3 for p in model.parameters())
    rest = f"embeddings, output layer and norms{', and the experts, which are stacked,' if stacked else ''}"
    double = " with double quantisation" if how.name in ("nf4", "fp4") and how.double else ""
    return f"the base in {how.name}{double}: {share:.0%} of its weights; {rest} stay in {dtype}; {size / 2**20:,.1f} MiB in all"
