"""Loading a base quantised: its tensors are read, quantised and dropped one by one, through transformers' own loading.

transformers 5 maps the files into memory, whose pages then count as the process's own, and quantises whole tensors: for a model of
1,039 million parameters in nf4 that takes 4.7 times the quantised size. Here tensors are read (pread) and quantised in chunks.
"""

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.model.quantize import Quantization
from tunesmith.model.quantized_layers import mark, quantized, targets

METHOD = "tunesmith"  # under which our way of quantising is registered with transformers while a model loads


def load(
    base: str, how: Quantization, dtype: Any, device: str, attention: str | None, local: bool, config: Any = None
) -> Any:
    """Return the causal language model of a folder or hub id (`local`: of its cache) quantised on `device`, in `dtype`, in eval mode.

    dtype: torch's; None: the checkpoint's own. config: a reward model's, which is loaded instead (reward_config).
    """
    from safetensors import safe_open
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoConfig,
        GenerationConfig,
    )

    known = MODEL_FOR_CAUSAL_LM_MAPPING if config is None else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    config = config or AutoConfig.from_pretrained(base, local_files_only=local)
    files = [safe_open(file, framework="pt", backend="pread") for file in weight_files(base, local)]
    tensors = {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118
    dtype = dtype or config.dtype or _floating(tensors)
    kwargs: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if device != "cpu":
        kwargs["device_map"] = {"": device}
    loader = known[type(config)]
    model = loader.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, quantization_config=_config(how), **kwargs
    )
    model.requires_grad_(False)
    model.config.quantization_config = how.describe()
    model.name_or_path = model.config.name_or_path = base
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(base, local_files_only=local)
    return model


def weight_files(base: str, local: bool) -> list[str]:
    """Return the paths of a model's safetensors files, fetched to the hub's cache where they are not here yet."""
    from transformers.utils import cached_file

    def find(name: str, must: bool = True) -> Any:
        return cached_file(base, name, local_files_only=local, _raise_exceptions_for_missing_entries=must)

    index = find("model.safetensors.index.json", must=False)
    if index is None:
        return [find("model.safetensors")]
    return [find(Path(name).name) for name in sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))]


def _floating(tensors: dict[str, Any]) -> Any:
    import torch

    known = {"BF16": torch.bfloat16, "F16": torch.float16}
    return next((known[d] for t in tensors.values() if (d := t.get_dtype()) in known), torch.float32)


def _config(how: Quantization) -> Any:
    from transformers.utils.quantization_config import QuantizationConfigMixin

    _register()
    config = QuantizationConfigMixin(quant_method=METHOD)
    config.how = how
    return config


@cache
def _register() -> None:
    """Register with transformers what quantises the layers of `targets` as they are loaded."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantizer

    class Quantize(ConversionOps):  # type: ignore[misc]
        def __init__(self, how: Quantization) -> None:
            self.how = how

        def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
            model, missing = kwargs["model"], kwargs["missing_keys"]
            for name in list(input_dict):
                found = input_dict.pop(name)
                weight = found.pop() if isinstance(found, list) else found
                del found
                path = name.removesuffix(".weight")
                layer = quantized(model.get_submodule(path), weight, self.how)
                layer._is_hf_initialized = layer.weight._is_hf_initialized = True  # type: ignore[union-attr,assignment]
                model.set_submodule(path, layer)
                missing.discard(name)
            return {}

    @register_quantizer(METHOD)
    class Streaming(HfQuantizer):  # type: ignore[misc]
        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            self.names = {f"{name}.weight" for name in targets(model)}
            mark(model, self.quantization_config.how)
            return model

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            return param_name in self.names

        def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
            return 1 if param_name in self.names else param.element_size()

        def get_quantize_ops(self) -> Any:
            return Quantize(self.quantization_config.how)
