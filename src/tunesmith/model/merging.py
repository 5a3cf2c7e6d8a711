"""LoRA adapters merged by weights into one, from their files alone: the model itself is not loaded.

A part's change of a layer is its delta s B A. Of n parts with weights w:

    cat                 sum w_i s_i B_i A_i, exactly: the A and the B one after the other, so the rank is the sum of the ranks
    svd                 the best approximation of that sum of the given rank (Eckart & Young, 1936)
    linear              (sum sqrt(w_i s_i) B_i) (sum sqrt(w_i s_i) A_i): PEFT's, which is not the sum of the deltas; it keeps the rank
    ties                TIES (Yadav et al., 2023, arXiv 2306.01708): the largest numbers, the sign of the majority, the mean of those of it
    dare_linear, _ties  DARE (Yu et al., 2024, arXiv 2311.03099): of each part a random share, divided by it; then the sum, or ties
    magnitude_prune     the largest numbers of each part, then the sum

The last four work on A and B apart, as in PEFT, or with `_svd` behind the name on the deltas, as the papers have them, whose
result is then cut to a rank. The operations are PEFT's own (peft.utils.merge_utils); PEFT's add_weighted_adapter takes rsLoRA's
scale for another, has every base weight loaded, and decomposes whole deltas where a sum of narrow products would do.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.errors import InputError, did_you_mean
from tunesmith.model.loading import adapter_config

OPERATIONS = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "svd", "linear", *OPERATIONS, *(f"{name}_svd" for name in OPERATIONS))
SHORT = {"dare": "dare_linear", "dare_svd": "dare_linear_svd"}
DENSITY = 0.5
# what of PEFT's LoraConfig leaves a layer's change s B A; anything else that is set makes it another formula
PLAIN = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "megatron_core", "runtime_config", "qalora_group_size",
}  # fmt: skip
BEGIN_ELSEWHERE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base's own weights
FORMS = ("lora_{}.weight", "lora_embedding_{}")


class Layer(NamedTuple):
    """One layer's A (r,in) and B (out,r); its delta is scale B A."""

    a: Tensor
    b: Tensor
    scale: float


Layers = dict[tuple[str, str], Layer]
"""(module, how its tensors are called: one of FORMS) -> layer"""


@dataclass(frozen=True)
class Part:
    """An adapter's folder, its adapter_config.json, and its layers in fp32."""

    folder: str
    config: dict[str, Any]
    layers: Layers


def refuse_other_kinds(folder: str, instead: str = "merge it into its base with --into-base") -> None:
    """InputError, which says what to do instead, unless the adapter of a folder is plain LoRA, whose change of every layer is s B A."""
    config = adapter_config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(
            f"{folder} is an adapter of the kind {kind}, and only LoRA ones can be added up; {instead}, where its kind allows it."
        )
    other, begun = beyond_plain(config), config.get("init_lora_weights")
    if other is None and isinstance(begun, str) and begun.startswith(BEGIN_ELSEWHERE):
        other = f"init_lora_weights {begun}"
    if other is not None:
        raise InputError(
            f"{folder} is a LoRA adapter with {other}, whose change of the model is no sum of products A and B, so it cannot be "
            f"added to others; {instead}."
        )


def beyond_plain(config: dict[str, Any]) -> str | None:
    """Return what a LoRA adapter's config asks for that makes its change of a layer another than s B A; None where nothing does."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    return next((k for k, v in config.items() if k not in PLAIN and v and v != usual.get(k)), None)


def read(folder: str) -> Part:
    """Return the LoRA adapter of a folder; InputError for one that is not plain LoRA or whose file is no such adapter's."""
    from peft.utils.other import get_pattern_key

    refuse_other_kinds(folder)
    config, file = adapter_config(folder), Path(folder) / "adapter_model.safetensors"
    tensors, layers = load_file(file), Layers()
    for key in [k for k in tensors if k.endswith((".lora_A.weight", ".lora_embedding_A"))]:
        form = FORMS[key.endswith("_embedding_A")]
        module = key.removesuffix("." + form.format("A"))
        b = tensors.pop(f"{module}.{form.format('B')}", None)
        a = tensors.pop(key)
        if b is None or a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise InputError(
                f"{file}: the A and B of {module} do not belong together; fetch or save the adapter again."
            )
        name = module.removeprefix("base_model.model.")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise InputError(
                f"{file}: the A and B of {name} hold numbers that are not finite; its training went wrong."
            )
        patterns = config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(list(patterns), name), config["lora_alpha"])
        scale = alpha / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
        layers[module, form] = Layer(a.float(), b.float(), float(scale))
    if tensors or not layers:
        what = f"holds {min(tensors)}" if tensors else "holds no A and B"
        raise InputError(
            f"{file} {what}, so it is more or less than a plain LoRA adapter and cannot be added to others."
        )
    return Part(folder, config, layers)


def method_named(method: str) -> str:
    """Return the method by its full name; InputError with the nearest spelling where there is none."""
    name = SHORT.get(method, method)
    if name not in METHODS:
        raise InputError(f'there is no way to merge named "{method}".{did_you_mean(method, [*METHODS, "dare"])}')
    return name


def check(parts: Sequence[Part], method: str, rank: int | None) -> None:
    """InputError where the parts' shapes do not allow the method, or a layer of theirs is not of one model."""
    first: dict[tuple[str, str], tuple[Part, Layer]] = {}
    for part in parts:
        for key, layer in part.layers.items():
            other, known = first.setdefault(key, (part, layer))
            shapes = [[len(x.b), x.a.shape[1]] for x in (known, layer)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{other.folder} and {part.folder} are adapters of different models: {key[0]} is {shapes[0]} in the one and "
                    f"{shapes[1]} in the other."
                )
            ranks = [len(known.a), len(layer.a)]
            if method in ("linear", *OPERATIONS) and ranks[0] != ranks[1]:
                raise InputError(
                    f"{method} adds A to A and B to B, which needs one rank, but {other.folder} has {ranks[0]} and {part.folder} has "
                    f"{ranks[1]}; take cat or svd."
                )
    narrowest = min(min(len(x.b), x.a.shape[1]) for _, x in first.values())
    if rank is not None and rank > narrowest:
        raise InputError(f"--rank {rank} is above that of the narrowest layer, {narrowest}; lower it.")


def default_weights(n: int, method: str) -> list[float]:
    """Return 1/n for each of n parts; 1 where the method takes means itself."""
    return [1.0 if "ties" in method else 1 / n] * n


def combine(
    parts: Sequence[Part],
    weights: Sequence[float],
    method: str = "cat",
    rank: int | None = None,
    density: float = DENSITY,
    seed: int = 0,
) -> Layers:
    """Return the merged layers, in fp32, of scale 1; a layer that only some parts have is merged of those.

    rank: of the ways that end in svd (default: the largest of the parts'). density: the share of numbers that ties, dare and
    magnitude_prune keep. seed: draws what dare keeps.
    """
    check(parts, method, rank)
    rank = rank or max(len(layer.a) for part in parts for layer in part.layers.values())
    operation = _operation(method.removesuffix("_svd"), density)
    merged: Layers = {}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for key in dict.fromkeys(key for part in parts for key in part.layers):
            own = [(part.layers[key], w) for part, w in zip(parts, weights, strict=True) if key in part.layers]
            layers, factors = [layer for layer, _ in own], [w * layer.scale for layer, w in own]
            if method in ("cat", "svd"):
                a = torch.cat([layer.a for layer in layers])
                b = torch.cat([layer.b * f for layer, f in zip(layers, factors, strict=True)], 1)
                merged[key] = Layer(a, b, 1.0) if method == "cat" else _narrowed(a, b, rank)
            elif method.endswith("_svd"):
                deltas = [layer.scale * layer.b @ layer.a for layer in layers]
                merged[key] = _cut(operation(deltas, torch.tensor([w for _, w in own])), rank)
            else:
                roots = torch.tensor([math.sqrt(abs(f)) for f in factors])
                signs = torch.tensor([math.copysign(1.0, f) for f in factors])
                a = operation([layer.a for layer in layers], roots * signs)
                merged[key] = Layer(a, operation([layer.b for layer in layers], roots), 1.0)
    return merged


def _operation(name: str, density: float) -> Callable[[list[Tensor], Tensor], Tensor]:
    from peft.utils import merge_utils

    if name not in OPERATIONS:
        return merge_utils.task_arithmetic  # type: ignore[no-any-return]
    function = getattr(merge_utils, name)

    def quietly(tensors: list[Tensor], weights: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The density 1")  # which keeps all, as asked
            return function(tensors, weights, density)  # type: ignore[no-any-return]

    return quietly


def _narrowed(a: Tensor, b: Tensor, rank: int) -> Layer:
    """Return the best A and B of a rank for the product of b (out,R) and a (R,in), by a decomposition of R x R numbers."""
    (qb, rb), (qa, ra) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().t())
    u, s, vh = torch.linalg.svd(rb @ ra.t())
    return _halves(qb @ u, s, vh @ qa.t(), rank)


def _cut(delta: Tensor, rank: int) -> Layer:
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return _halves(u, s, vh, rank)


def _halves(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Layer:
    root = s[:rank].sqrt()
    return Layer((root[:, None] * vh[:rank]).float().contiguous(), (u[:, :rank] * root).float().contiguous(), 1.0)


def write(layers: Layers, configs: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write merged layers as a plain PEFT folder; `configs` are the parts', of which the first says base, task and layout.

    Layers of a lower rank than others are filled up with zeros, for not every reader of such folders knows ranks by layer.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = max(len(layer.a) for layer in layers.values())
    tensors = {}
    for (module, form), layer in layers.items():
        more = rank - len(layer.a)
        a, b = torch.nn.functional.pad(layer.a, (0, 0, 0, more)), torch.nn.functional.pad(layer.b, (0, more))
        tensors[f"{module}.{form.format('A')}"] = a.contiguous()
        tensors[f"{module}.{form.format('B')}"] = (b * layer.scale).contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_targets(layers, configs),
        task_type=configs[0].get("task_type"),
        base_model_name_or_path=configs[0].get("base_model_name_or_path"),
        fan_in_fan_out=bool(configs[0].get("fan_in_fan_out")),
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(layers: Layers, configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the parts list, where each list says all of it; else the whole names of the layers."""
    narrowing = ("layers_to_transform", "layers_pattern", "exclude_modules")
    lists = [c.get("target_modules") for c in configs if not any(c.get(key) for key in narrowing)]
    if len(lists) == len(configs) and all(isinstance(names, list) for names in lists):
        return sorted({name for names in lists for name in names or []})
    return sorted(module.removeprefix("base_model.model.") for module, _ in layers)
