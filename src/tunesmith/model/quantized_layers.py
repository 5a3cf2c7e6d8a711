"""Layers of bitsandbytes and torchao that hold a frozen weight in 4 or 8 bits, and their product, in training and after it the same.

The product is with the weights dequantised, so what comes of a token never depends on those beside it in a batch.
"""

import warnings
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.model.linear import Parts, project
from tunesmith.model.quantize import Quantization, is_quantized, kind_of

BLOCK = 64  # numbers that share a scale, as the paper and bitsandbytes have it
CHUNK = 1 << 16  # numbers that a CPU quantises at a time: bitsandbytes needs 20 bytes for each meanwhile


def _forward(layer: Any, x: Tensor) -> Tensor:
    return project(x.to(layer.compute_dtype), [Parts(None, layer.bias, base=layer)])[0].to(x.dtype)


def targets(model: Any) -> list[str]:
    """Return the names of the layers that quantising reaches: linear ones but the output layer, as transformers chooses them."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    linear = [name for name, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)]
    return [name for name in linear if should_convert_module(name, kept)]


@torch.no_grad()
def quantized(layer: Any, weight: Tensor, how: Quantization) -> nn.Module:
    """Return the layer (a Linear, or transformers' Conv1D) with its weight in full replaced by `weight`, quantised on its device.

    Works on device "meta". The compute dtype is the weight's.
    """
    if type(layer) is not nn.Linear:
        weight = weight.t()  # Conv1D holds (in, out)
    weight = weight.contiguous()
    out, into = weight.shape
    with torch.device("meta"):
        new: Any = _empty(how, into, out)
    new.weight = _weight(weight, how)
    new.bias = layer.bias
    prepare_layer(new, weight.dtype)
    if weight.is_meta:
        new.__deepcopy__ = lambda memo: new  # bitsandbytes' own copy would mix devices, and PEFT copies layers for DoRA
    return new  # type: ignore[no-any-return]


def _empty(how: Quantization, into: int, out: int) -> nn.Module:
    if how.name == "torchao-int8":
        return nn.Linear(into, out, bias=False)
    import bitsandbytes as bnb

    if how.name == "int8":
        return bnb.nn.Linear8bitLt(into, out, bias=False, has_fp16_weights=False)  # type: ignore[no-any-return]
    return bnb.nn.Linear4bit(into, out, bias=False, compress_statistics=how.double, quant_type=how.name)  # type: ignore


def prepare_layer(layer: Any, dtype: torch.dtype) -> None:
    """Give a quantised layer its compute dtype and, but for 4 bits on a GPU, a forward that keeps no full weight for the backward pass.

    bitsandbytes' own forward would on a CPU change 4-bit weights for good (their scales become bf16) where it runs without
    gradients, and would round 8-bit layers' inputs where it is not training.
    """
    layer.compute_dtype = dtype
    if kind_of(layer.weight) == "Params4bit":
        layer.compute_type_is_set, layer.support_avx512bf16_for_cpu = True, False
    if kind_of(layer.weight) != "Params4bit" or layer.weight.device.type == "cpu":
        layer.forward = partial(_forward, layer)


def prepare_layers(model: nn.Module) -> None:
    """Do so with all quantised layers of a model whose own files are quantised; the others' dtype is the compute dtype."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    for layer in model.modules():
        if is_quantized(layer):
            weight: Any = layer.weight
            if kind_of(weight) == "Params4bit":
                weight.quant_state.dtype = dtype
            prepare_layer(layer, dtype)


def _weight(weight: Tensor, how: Quantization) -> nn.Parameter:
    if how.name == "torchao-int8":
        return _torchao(weight)
    return _eight_bits(weight) if how.name == "int8" else _four_bits(weight, how)


def _four_bits(weight: Tensor, how: Quantization) -> nn.Parameter:
    """As bitsandbytes' quantize_4bit, to the bit, in chunks."""
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_4bit, quantize_blockwise
    from bitsandbytes.nn import Params4bit

    flat, n = weight.view(-1), weight.numel()
    packed = torch.empty((n + 1) // 2, 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(-(-n // BLOCK), dtype=torch.float32, device=weight.device)
    step = CHUNK if weight.device.type == "cpu" else n
    for start in range(0, n, step):
        part, state = quantize_4bit(flat[start : start + step], blocksize=BLOCK, quant_type=how.name)
        packed[start // 2 : start // 2 + len(part)] = part
        absmax[start // BLOCK : start // BLOCK + len(state.absmax)] = state.absmax
    more: dict[str, Any] = {}
    if how.double:
        more["offset"] = absmax.mean()
        table = _dynamic_map().to(absmax.device)  # its own cached one would be on "meta" after a first call there
        absmax, more["state2"] = quantize_blockwise(absmax - more["offset"], code=table, blocksize=256)
    code = get_4bit_type(how.name, device=weight.device)
    own = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": BLOCK, "quant_type": how.name, "code": code}
    made = {"compress_statistics": how.double, "quant_type": how.name, "blocksize": BLOCK, "bnb_quantized": True}
    return Params4bit(packed, quant_state=QuantState(absmax=absmax, **own, **more), **made)  # type: ignore[no-any-return]


@cache
def _dynamic_map() -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map()  # type: ignore[no-any-return]


def _eight_bits(weight: Tensor) -> nn.Parameter:
    """As bitsandbytes' Int8Params, to the bit, in chunks of rows; it rounds to fp16 first."""
    from bitsandbytes.functional import int8_vectorwise_quant
    from bitsandbytes.nn import Int8Params

    whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    rows = _rows(weight)
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].half()
        whole[start : start + rows], scale[start : start + rows], _ = int8_vectorwise_quant(part)
    return Int8Params(whole, requires_grad=False, CB=whole, SCB=scale)  # type: ignore[no-any-return]


def _torchao(weight: Tensor) -> nn.Parameter:
    """As torchao's Int8WeightOnlyConfig, in chunks of rows."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    held: dict[str, Tensor] = {}
    start = 0
    for rows in weight.split(_rows(weight)):
        with torch.device("meta"):
            holder: Any = nn.Linear(weight.shape[1], len(rows), bias=False)
        holder.weight = nn.Parameter(rows, requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecations
            quantize_(holder, Int8WeightOnlyConfig())
        names, facts = holder.weight.__tensor_flatten__()
        for name in names:
            part = getattr(holder.weight, name)
            whole = held.setdefault(name, part.new_empty(len(weight), *part.shape[1:]))
            whole[start : start + len(rows)] = part
        start += len(rows)
        kind = type(holder.weight)
        holder.weight = None  # torchao's extra_repr refers to the holder in a circle, which would keep it
    return nn.Parameter(kind.__tensor_unflatten__(held, facts, None, None), requires_grad=False)


def _rows(weight: Tensor) -> int:
    return max(1, CHUNK // weight.shape[1]) if weight.device.type == "cpu" else len(weight)


def quantize_model(model: Any, how: Quantization) -> float:
    """Quantise a model's layers in place, as loading does (it is for models on "meta"); return the share of its weights reached."""
    total: int = sum(p.numel() for p in model.parameters())
    reached: int = 0
    for name in targets(model):
        layer = model.get_submodule(name)
        reached += layer.weight.numel()
        model.set_submodule(name, quantized(layer, layer.weight, how))
    mark(model, how)
    return reached / max(total, 1)


def mark(model: Any, how: Quantization) -> None:
    """Tell PEFT which of its layers to attach."""
    if how.name in ("nf4", "fp4"):
        model.is_loaded_in_4bit = True
    elif how.name == "int8":
        model.is_loaded_in_8bit = True
