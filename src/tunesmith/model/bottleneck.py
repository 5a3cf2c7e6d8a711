"""Bottleneck adapters: y = x + U f(D x + d) + u on what a sub-layer adds to the residual stream, everything else frozen.

Houlsby et al., 2019 (arXiv 1902.00751): after attention and after the feed-forward block, behind the projection back to the model's
width and before the residual sum. Pfeiffer et al., 2021 (arXiv 2005.00247): after the feed-forward block alone. U and u start at
zero, so training starts from the model as it is. D (size, width), U (width, size). PEFT has no such method; the files are like its own.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tunesmith.arguments import arguments
from tunesmith.errors import InputError
from tunesmith.model.activations import decoder_layers
from tunesmith.model.loading import adapter_config
from tunesmith.model.wrapped import Wrapped

KIND = "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
ATTENTION = re.compile(
    r"attn|attention|mixer|mamba|recurrent|temporal_block|conv$"
)  # what mixes tokens, of whatever kind
FEEDFORWARD = re.compile(r"mlp|feed_?forward|ffn|moe|fc2$")
POST_NORMS = {  # a norm between a sub-layer and the residual sum: the name of the one after attention by that of the other
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}


@dataclass
class BottleneckConfig:
    """What adapter_config.json says; the fields that PEFT's have too are named as there."""

    placement: Literal["houlsby", "pfeiffer"]
    size: Annotated[int, Field(gt=0)]
    activation: Literal["gelu", "relu", "silu", "tanh"]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    base_model_name_or_path: str | None = None
    peft_type: str = KIND
    task_type: str = "CAUSAL_LM"
    is_prompt_learning: ClassVar[bool] = False


class Bottleneck(nn.Module):
    """The adapter itself, (..., width) to (..., width)."""

    def __init__(self, config: BottleneckConfig, width: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.size, device=device, dtype=dtype)
        self.up = nn.Linear(config.size, width, device=device, dtype=dtype)
        self.act, self.dropout, self.enabled = ACTIVATIONS[config.activation], config.dropout, True
        for p in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(self.act(self.down(x)))
        return F.dropout(added, self.dropout, self.training).add_(x) if self.dropout else added.add_(x)


class Adapted(nn.Module):
    """A block of the model and the adapter behind it; a block that returns several things has its first one adapted."""

    def __init__(self, block: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.block, self.adapter = block, adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.block(*args, **kwargs)
        if not self.adapter.enabled:
            return out
        return (self.adapter(out[0]), *out[1:]) if isinstance(out, tuple) else self.adapter(out)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)  # a layer may ask its attention for its window


class BottleneckModel(Wrapped):
    """A transformers model with bottleneck adapters, which alone are trained; offers of PeftModel what tunesmith uses."""

    def __init__(self, model: Any, config: BottleneckConfig) -> None:
        """Put adapters into `model`, also on device "meta". InputError where its layers have no such blocks."""
        super().__init__(model, config)
        width = model.config.get_text_config().hidden_size
        layers = decoder_layers(model.get_decoder()) or decoder_layers(model)
        if not layers:
            raise InputError(f"bottleneck adapters find no decoder layers in this model ({type(model).__name__}).")
        for layer in layers:
            for name in _places(layer, config.placement):
                parent, _, last = name.rpartition(".")
                block = layer.get_submodule(name)
                adapter = Bottleneck(config, width, next(layer.parameters()).device, model.dtype)
                setattr(layer.get_submodule(parent), last, Adapted(block, adapter))

    def adapters(self) -> dict[str, nn.Parameter]:
        """Return the adapters' parameters by the name they are saved under."""
        return {n: p for n, p in self.named_parameters() if ".adapter." in n}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within it the model is the base model."""
        mine = [m for m in self.modules() if isinstance(m, Bottleneck)]
        before = [m.enabled for m in mine]
        try:
            for m in mine:
                m.enabled = False
            yield
        finally:
            for m, enabled in zip(mine, before, strict=True):
                m.enabled = enabled

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        """InputError: what has an activation in its middle is no sum of weights."""
        raise InputError(
            "a bottleneck adapter has an activation in its middle, so it cannot be merged into the model's weights; use the model "
            "with its adapter."
        )

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(asdict(self.peft_config["default"]), indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.adapters().items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_config(folder: str) -> BottleneckConfig:
    """Return what a folder's adapter_config.json says; InputError where it is none of ours."""
    file = Path(folder) / "adapter_config.json"
    given = arguments(BottleneckConfig, adapter_config(folder), str(file), ())
    return BottleneckConfig(**given)


def load(model: Any, folder: str) -> BottleneckModel:
    """Return the model with the adapters of a folder, whose shapes were found to fit."""
    from safetensors.torch import load_file

    adapted = BottleneckModel(model, read_config(folder))
    adapted.load_state_dict(load_file(Path(folder) / "adapter_model.safetensors"), strict=False)
    return adapted


def _places(layer: nn.Module, placement: str) -> list[str]:
    """Return the names, within a decoder layer, of the modules whose outputs are adapted; InputError where there are none.

    A sub-layer's last module before the residual sum: itself, or the norm behind it (Gemma 2); where a sub-layer adds the residual
    itself (BLOOM), its projection back.
    """
    children = [name for name, _ in layer.named_children()]
    post = next((name for name in POST_NORMS if name in children), None)
    blocks = [n for n in children if "norm" not in n and "dropout" not in n]
    places = []
    wanted = [("attention", ATTENTION)] if placement == "houlsby" else []
    for what, pattern in [*wanted, ("feed-forward", FEEDFORWARD)]:
        if post is not None:
            name: str | None = post if what == "feed-forward" else POST_NORMS[post]
        else:
            name = next((n for n in blocks if pattern.search(n)), None)
        if name is None or not hasattr(layer, name):
            raise InputError(
                f"adapter.placement {placement}: the layers of this model ({type(layer).__name__}) have no {what} block to put a "
                f"bottleneck adapter behind; they have {', '.join(children)}."
            )
        places.append(_projection(layer, name))
    return places


def _projection(layer: nn.Module, name: str) -> str:
    block = layer.get_submodule(name)
    if "residual" not in inspect.signature(block.forward).parameters:
        return name
    linear = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    return f"{name}.{linear[-1]}"
