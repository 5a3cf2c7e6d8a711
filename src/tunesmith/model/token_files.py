"""The rows of new tokens in an adapter's folder, as PEFT keeps them.

With LoRA and its kin they are the config's trainable_token_indices, in the adapter's own file. Alone they are an adapter of PEFT's
kind TRAINABLE_TOKENS; beside an adapter of any other kind such a one is in the folder new_tokens, to be merged into the base before
the other is loaded.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from tunesmith.errors import InputError
from tunesmith.model import new_tokens
from tunesmith.model.loading import adapter_config, safetensors_shapes
from tunesmith.model.new_tokens import Rows
from tunesmith.model.wrapped import Wrapped

WEIGHTS, FOLDER, PREFIX = "adapter_model.safetensors", "new_tokens", "base_model.model."
KIND = "TRAINABLE_TOKENS"
ALONE = ".trainable_tokens_delta"
BESIDE = f".token_adapter{ALONE}"


class Kept(NamedTuple):
    """Rows in a file: the module whose matrix they belong to, the tensor's name and shape, the tokens' ids."""

    module: str
    file: Path
    key: str
    shape: list[int]
    ids: list[int]


@dataclass
class TokensConfig:
    """What PeftModel's config is asked for."""

    base_model_name_or_path: str | None = None
    peft_type: str = KIND
    is_prompt_learning: ClassVar[bool] = False


class TokensModel(Wrapped):
    """A frozen transformers model of which rows of tokens alone are trained; offers of PeftModel what tunesmith uses."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, TokensConfig())

    def adapters(self) -> dict[str, nn.Parameter]:
        """Return the trained rows."""
        return {n: p for n, p in self.named_parameters() if n.endswith(new_tokens.PARAMETER)}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Nothing to do: new_tokens.train_rows lays its own switch around this one."""
        yield

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Return the transformers model, whose matrices hold the rows of a loaded adapter."""
        return self.base_model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Make the folder, in which `save` writes the rows."""
        Path(folder).mkdir(parents=True, exist_ok=True)


def kept(adapter: str) -> list[Kept]:
    """Return what rows an adapter's folder brings, by its headers; InputError where ids and rows do not fit together."""
    folder, config, suffix = Path(adapter), adapter_config(adapter), BESIDE
    indices = config.get("trainable_token_indices")
    if config.get("peft_type") == KIND:
        indices, suffix = config.get("token_indices"), ALONE
    elif indices is None and (folder / FOLDER / "adapter_config.json").is_file():
        folder, suffix = folder / FOLDER, ALONE
        indices = adapter_config(str(folder)).get("token_indices")
    if indices is None or not (folder / WEIGHTS).is_file():
        return []
    found = []
    for key, shape in safetensors_shapes(folder / WEIGHTS).items():
        if key.endswith(suffix):
            module = key.removeprefix(PREFIX).removesuffix(suffix)
            ids = indices
            if isinstance(indices, dict):
                ids = next((own for name, own in indices.items() if module.endswith(name)), None)
            if not isinstance(ids, list) or len(ids) != shape[0] or not all(isinstance(i, int) and i >= 0 for i in ids):
                raise InputError(
                    f"{folder}/adapter_config.json lists other tokens than {WEIGHTS} has rows of; copy it again."
                )
            found.append(Kept(module, folder / WEIGHTS, key, shape, ids))
    return found


def ids(adapter: str) -> list[int]:
    """Return the tokens whose rows an adapter's folder brings, ascending."""
    return sorted({i for rows in kept(adapter) for i in rows.ids})


def size(adapter: str, model: Any) -> int:
    """Return how many rows the model's vocabulary needs for the adapter: for its tokens, or for matrices it brings whole."""
    file = Path(adapter) / WEIGHTS
    shapes = safetensors_shapes(file) if file.is_file() else {}
    embedding = model.get_input_embeddings()
    name = next(n for n, m in model.named_modules() if m is embedding)
    whole: list[int] = shapes.get(f"{PREFIX}{name}.weight", [0])
    return max([whole[0], *(i + 1 for i in ids(adapter))])


def put(model: Any, adapter: str) -> None:
    """Grow the model's vocabulary as the adapter needs it, and write the rows that its folder brings into it."""
    from safetensors import safe_open

    new_tokens.grow(model, size(adapter, model))
    for rows in kept(adapter):
        with safe_open(rows.file, "pt") as f:
            new_tokens.write(model.get_submodule(rows.module), torch.tensor(rows.ids), f.get_tensor(rows.key))


def save(found: dict[str, Rows], model: Any, folder: Path) -> None:
    """Add the rows of new_tokens.settle to a folder into which the adapter `model` was saved."""
    if not found or not hasattr(model, "peft_config"):  # a whole model has them in its matrices
        return
    from safetensors.torch import load_file, save_file

    listed = {name: ids.tolist() for name, (ids, _) in found.items()}
    config = next(iter(model.peft_config.values()))
    if hasattr(config, "trainable_token_indices"):
        content = adapter_config(str(folder)) | {"trainable_token_indices": listed}
        tensors, suffix = load_file(folder / WEIGHTS), BESIDE
    else:
        folder, tensors, suffix = folder if config.peft_type == KIND else folder / FOLDER, {}, ALONE
        folder.mkdir(exist_ok=True)
        content = {
            "peft_type": KIND,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": config.base_model_name_or_path,
            "inference_mode": True,
            "init_weights": True,
            "target_modules": list(found),
            "token_indices": next(iter(listed.values())),
        }
    tensors |= {f"{PREFIX}{name}{suffix}": rows.contiguous() for name, (_, rows) in found.items()}
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
