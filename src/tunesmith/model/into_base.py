"""An adapter merged into its base: a whole model in transformers' format, proven to give the adapter's logits."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith import registry
from tunesmith.errors import InputError
from tunesmith.evaluation.report_format import memory
from tunesmith.model import loading
from tunesmith.model.loading import ModelSource, adapter_config
from tunesmith.run_file import load_file
from tunesmith.training import disk

EXACT = 1e-4  # the largest difference of a logit, in fp32, relative to the largest logit where that is beyond 1
TOKENS = 64  # that logits are compared on


def refuse_unmergeable(adapter: str) -> None:
    """InputError where an adapter's kind cannot become part of the base's weights; opens no tensor."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = str(adapter_config(adapter).get("peft_type"))
    known = {str(getattr(k, "value", k)): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = made_by(adapter).get("adapter", {}).get("name")
    why = None
    if kind == "BOTTLENECK":
        why = "it has an activation in its middle"
    elif kind not in known:
        why = "its kind is not known here"
    elif issubclass(known[kind], PromptLearningConfig):
        why = "it is virtual tokens before the text, no change of weights"
    elif isinstance(name, str) and not getattr(registry.load("model.adapters", name), "MERGES", True):
        why = f"it was trained as {name}, whose A and B belong to the quantised base"
    if why is not None:
        raise InputError(
            f"the {kind} adapter {adapter} cannot be merged into its base: {why}; use the model with its adapter."
        )


def made_by(adapter: str) -> dict[str, Any]:
    """Return the run file that made an adapter, {} where its folder is no run's result."""
    run = Path(adapter).absolute().parent
    return load_file(str(run)) if Path(adapter).name == "result" and (run / "run.yaml").is_file() else {}


def refuse_quantized(source: ModelSource) -> None:
    """InputError where the base's own files are quantised: what is added to them would be rounded away."""
    if getattr(loading.load_config(source), "quantization_config", None):
        raise InputError(
            f"the base {source.base} is quantised, and an adapter cannot be merged into it without loss; name the unquantised model "
            "with --model."
        )


def merge(model: Any, adapter: str) -> Any:
    """Return the model with its adapter merged into its weights, in its own dtype; InputError where PEFT cannot."""
    try:
        return model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, ValueError, TypeError, RuntimeError) as e:
        first = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")
        raise InputError(
            f"the adapter {adapter} cannot be merged into its base: {first}; use the model with its adapter."
        ) from e


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Return the model's logits on some tokens, always the same ones, (1,T,V)."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return model.eval()(ids).logits.float()  # type: ignore[no-any-return]


def away(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest number wanted where that is beyond 1."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def merge_into_base(source: ModelSource, tokenizer: Any, output: Path) -> dict[str, Any]:
    """Write the base with its adapter merged in, in the base's own dtype, and its tokenizer, as a transformers folder.

    Returns {"difference": of logits between merged and unmerged in fp32, "saved_difference": of the model as saved, "dtype", "bytes"};
    differences as `away`. InputError, and nothing is written, where the first is above EXACT.
    """
    assert source.adapter is not None
    dtype = getattr(loading.load_config(source).get_text_config(), "dtype", None) or torch.float32
    model = loading.load_model(replace(source, quantize=None), dtype="float32")
    wanted = logits(model)
    whole = merge(model, source.adapter)
    difference = away(logits(whole), wanted)
    if not difference <= EXACT:
        raise InputError(
            f"the adapter {source.adapter} merged into {source.base} gives other logits, by {difference:.2g} where {EXACT:g} is rounding; "
            "nothing was written, use the model with its adapter."
        )
    whole = whole.to(dtype)
    saved = away(logits(whole), wanted)
    return {
        "difference": difference,
        "saved_difference": saved,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": save(whole, tokenizer, output),
    }


def save(model: Any, tokenizer: Any, output: Path) -> int:
    """Write a model and its tokenizer beside, sync, rename; return the bytes of its weights."""
    beside = output.with_name(f".{output.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    size = sum(f.stat().st_size for f in beside.glob("*.safetensors"))
    for path in (*beside.iterdir(), beside):
        disk.sync(path)
    disk.rename(beside, output)
    return size


def merged_first(source: ModelSource, dtype: str, tokenizer: Any, keep: Path | None) -> tuple[Any, list[str]]:
    """Return the base with its adapter merged in, in `dtype`, to be trained on, and sentences for people.

    keep: where it is written, unless it is there already; the result of the run is an adapter of it.
    """
    assert source.adapter is not None
    model = merge(loading.load_model(source, dtype=dtype), source.adapter)
    if keep is None:
        return model, []
    if not keep.is_dir():
        save(model, tokenizer, keep)
    size = sum(f.stat().st_size for f in keep.glob("*.safetensors"))
    return model, [
        f"{source.adapter} is merged into the base first; the result is an adapter of {keep}, which takes {memory(size)}"
    ]
