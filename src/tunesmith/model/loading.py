"""What MODEL means on the command line, and how its tokenizer and weights are loaded: safetensors only, no code from the hub."""

import contextlib
import json
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import quantize, reward_config
from tunesmith.model.load_report import new_head
from tunesmith.model.quantize import Quantization
from tunesmith.model.reward_config import Attributes

STARTER = Path(__file__).parent.parent / "starter" / "model"
QUANTIZATION = "quantization.json"  # beside an adapter: transformers' quantization_config of the base it is for

# Used where a tokenizer brings no chat template: readable by any base model, one turn a paragraph, answers closed by eos.
PLAIN_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{%- else -%}{{ (m['role'] | capitalize) + ': ' + m['content'] + '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`base` is a local folder or a hub id in transformers' format; `adapter` a PEFT folder on top of it, if any.

    quantize: how the base is quantised when it is loaded; of an adapter's folder that the base it was trained on was. attributes: what a
    reward model scores (tunesmith.model.reward_config); () for a model that writes.
    """

    base: str
    adapter: str | None = None
    quantize: Quantization | None = None
    attributes: Attributes = ()


def resolve(model: str, adapter: str | None = None) -> ModelSource:
    """Say what MODEL is: `starter`, a run's folder, a PEFT adapter's folder, a transformers folder or a hub id.

    Reads at most two small JSON files. InputError where a path does not exist or a folder holds no model.
    """
    if not model:
        raise InputError("the model's path is empty; give starter, a folder, a hub id or a run's folder.")
    if model == "starter":
        if not STARTER.is_dir():
            raise InputError(
                f"the built-in model is missing from this installation ({STARTER}); install tunesmith anew."
            )
        source = ModelSource(str(STARTER))
    else:
        path = Path(model).expanduser()
        if path.is_dir():
            source = _resolve_folder(path)
        elif path.exists():
            raise InputError(f"{model} is a file; a model is a folder with config.json, a run's folder or a hub id.")
        elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model) and not _looks_local(model):
            source = ModelSource(model)
        else:
            siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
            raise InputError(f"there is no model folder {model}.{did_you_mean(path.name, siblings)}")
    if adapter is not None:
        if source.adapter:
            raise InputError(f"{model} already is an adapter on {source.base}; give either it or --adapter, not both.")
        if not (Path(adapter) / "adapter_config.json").is_file():
            inner = Path(adapter) / "result"
            if not Path(adapter).exists():
                raise InputError(f"there is no adapter's folder {adapter}.")
            if not (inner / "adapter_config.json").is_file():
                raise InputError(f"{adapter} holds no adapter_config.json, so it is no PEFT adapter's folder.")
            adapter = str(inner)
        source = ModelSource(source.base, adapter, _quantization_of(adapter))
    return source


def _looks_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _resolve_folder(path: Path) -> ModelSource:
    if (path / "run.yaml").is_file():
        if not (path / "result").is_dir():
            raise InputError(
                f"the run {path} has no result yet; finish it with `tunesmith train {path}/run.yaml --resume`."
            )
        path = path / "result"
    if (path / "adapter_config.json").is_file():
        return ModelSource(_base_of(path), str(path), _quantization_of(str(path)))
    if (path / "config.json").is_file():
        _json_object(path / "config.json")
        return ModelSource(str(path))
    raise InputError(f"the folder {path} holds no model: neither config.json, adapter_config.json nor a finished run.")


def _quantization_of(adapter: str) -> Quantization | None:
    """Return how the base was quantised that an adapter was trained on, which stands beside the adapter."""
    file = Path(adapter) / QUANTIZATION
    return quantize.described(_json_object(file)) if file.is_file() else None


def _base_of(adapter: Path) -> str:
    """Return the folder or hub id of the model an adapter was trained on."""
    config = adapter_config(str(adapter))
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(f"{adapter}/adapter_config.json names no base model (base_model_name_or_path).")
    if base.endswith("tunesmith/starter/model"):
        base = "starter"  # wherever this package was installed when the adapter was trained
    beside = adapter.absolute().parent / "base"  # of a run that merged an adapter first, and was moved since
    if Path(base).name == "base" and not Path(base).exists() and (beside / "config.json").is_file():
        base = str(beside)
    if (Path(base) / "adapter_config.json").is_file() or (Path(base) / "result" / "adapter_config.json").is_file():
        raise InputError(f"the adapter {adapter} stands on another adapter, {base}, which tunesmith does not load.")
    try:
        return resolve(base).base
    except InputError as e:
        raise InputError(f"the adapter {adapter} was trained on a model that is not here: {e}") from e


def adapter_config(adapter: str) -> dict[str, Any]:
    """Return a PEFT adapter's adapter_config.json; InputError where it is no JSON object."""
    return _json_object(Path(adapter) / "adapter_config.json")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{file} is no readable JSON; fetch or copy it again.") from e
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no JSON object.")
    return config


def load_tokenizer(source: ModelSource) -> tuple[Any, list[str]]:
    """Return the model's tokenizer (with a chat template, the plain one if it brings none) and notices for people.

    An adapter's folder is asked first, for the template it was trained with travels with it.
    """
    from transformers import AutoTokenizer

    folder = source.base
    if source.adapter and (Path(source.adapter) / "tokenizer_config.json").is_file():
        folder = source.adapter
    with _one_sentence(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=unreachable(folder))
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {folder} has no fast (tokenizers) form, which finding the scored tokens needs."
        )
    notices = []
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer of {folder} has neither a chat template nor an eos token to end an answer with."
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
        notices.append(
            f"the tokenizer of {folder} has no chat template: the plain one is used (User: … Assistant: … {tokenizer.eos_token})"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id  # only generation pads, and masks what it pads
    return tokenizer, notices


def load_config(source: ModelSource) -> Any:
    """Return the base model's transformers config, a reward model's as its run or its adapter has it.

    InputError where transformers cannot make a reward model of the base.
    """
    config = base_config(source)
    if source.attributes:
        return reward_config.made(config, source.attributes, source.adapter, source.base)
    return config


def base_config(source: ModelSource) -> Any:
    """Return the base model's transformers config as its folder has it."""
    from transformers import AutoConfig

    with _one_sentence(source.base, "config"):
        return AutoConfig.from_pretrained(source.base, local_files_only=unreachable(source.base))


def auto_class(source: ModelSource) -> Any:
    """Return the class of transformers that loads the base."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if source.attributes else AutoModelForCausalLM


def unreachable(model: str) -> bool:
    """Say whether only local copies can serve a model: asked of the hub at once, whose client would retry for a minute."""
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    if Path(model).is_dir() or constants.HF_HUB_OFFLINE:
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies():
        return False  # only the proxy knows
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=2).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep the hub's client from asking the network, and from retrying; its cache still serves."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_weights(source: ModelSource) -> None:
    """InputError unless local folders have safetensors weights, whole by their own header; opens no tensor."""
    if Path(source.base).is_dir():
        _check_folder(Path(source.base), "*.safetensors")
    for folder in [Path(source.adapter), Path(source.adapter) / "new_tokens"] if source.adapter else []:
        if folder.is_dir():
            _check_folder(folder, "adapter_model.safetensors")


def _check_folder(folder: Path, name: str) -> None:
    """`name`: what the weights are called; PEFT would take an adapter's pickle where only another file is safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise InputError(f"{index} is damaged: it is no index of weight files.") from e
        files = [folder / os.path.basename(n) for n in names]  # an index that names ../ reaches nothing
    else:
        files = sorted(folder.glob(name))
    if not files:
        pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt*")]
        hint = (
            f" It has {pickles[0]}, a pickle, which can run code: convert it to safetensors first." if pickles else ""
        )
        raise InputError(f"the model folder {folder} holds no {name} weights.{hint}")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is named by {index.name} but is not there.")
        _check_file(file)


def _check_file(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise InputError(f"{file} is damaged: its header is cut short ({size} bytes).")
        try:
            header = json.loads(f.read(length))
            end = max((int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise InputError(f"{file} is damaged: its header is no safetensors header.") from e
    if size != 8 + length + end:
        raise InputError(f"{file} is damaged: {8 + length + end} bytes expected, {size} found. Fetch it again.")


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a safetensors file, by its header."""
    with file.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    return {k: v["shape"] for k, v in header.items() if k != "__metadata__"}


def structure(source: ModelSource) -> Any:
    """Return the base model without memory for its weights, on device "meta"; InputError for one that scores where it is to write."""
    import torch

    config = load_config(source)
    if not source.attributes:
        reward_config.refuse(config, source.adapter or source.base)
    with _one_sentence(source.base, "config"), torch.device("meta"):
        return auto_class(source).from_config(config)


def load_model(
    source: ModelSource,
    dtype: str = "auto",
    attention: str | None = None,
    trainable: bool = False,
    device: str = "cpu",
) -> Any:
    """Return the causal language model, or the reward model, in `dtype` ("auto", "bfloat16", "float32"), adapter attached and frozen.

    It is on the CPU, but quantised on `device`, tensor by tensor, where source.quantize says so. Quantising freezes it.

    `attention` is a name registered with transformers' AttentionInterface (None: transformers' own choice). trainable: the adapter's
    weights, and no others, are to be trained. InputError, before a weight is loaded, where the adapter does not fit the base.
    """
    check_weights(source)
    if not source.attributes:
        reward_config.refuse(base_config(source), source.adapter or source.base)
    if source.adapter:
        from tunesmith.model import adapter_files

        adapter_files.check(source.adapter, structure(source), source.base)
    with _one_sentence(source.base, "model"):
        model = _load_base(source, dtype, attention, device)
    if source.adapter:
        with _one_sentence(source.adapter, "adapter"):
            model = adapter_files.load(model, source.adapter, trainable)
    return model


def _load_base(source: ModelSource, dtype: str, attention: str | None, device: str) -> Any:
    import torch

    local, config = unreachable(source.base), load_config(source)
    if source.quantize is not None:
        from tunesmith.model import stream

        kind = getattr(torch, dtype, None)
        asked = config if source.attributes else None
        model = stream.load(source.base, source.quantize, kind, device, attention, local, asked)
        return reward_config.begun(model, base_config(source)) if source.attributes else model
    kwargs = {} if attention is None else {"attn_implementation": attention}
    kwargs |= {"config": config} if source.attributes else {}
    with new_head() if source.attributes else contextlib.nullcontext():
        model = auto_class(source).from_pretrained(
            source.base, dtype=dtype, use_safetensors=True, local_files_only=local, **kwargs
        )
    if getattr(model, "is_quantized", False):  # by its own files
        from tunesmith.model.quantized_layers import prepare_layers

        prepare_layers(model)
    return reward_config.begun(model, base_config(source)) if source.attributes else model


class _one_sentence:  # noqa: N801 (reads as a statement)
    """Turn a loader's failure into one sentence that names the folder or hub id."""

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):  # loaders raise what they like
            if not Path(self.name).is_dir() and unreachable(self.name):
                near = did_you_mean(self.name, ["starter", *(p.name for p in Path().iterdir() if p.is_dir())])
                hint = near if near.startswith(" Did") else " Check the spelling and the network."
                raise InputError(
                    f'"{self.name}" is no local folder, and neither the hub (not reachable from here) nor its cache gives '
                    f"the {self.what}.{hint}"
                ) from error
            if Path(self.name).is_dir():
                for file in sorted(Path(self.name).glob("*.json")):
                    _json_object(file)  # which names the file that a loader's own word does not
            said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            lines = [line.strip() for line in said.strip().splitlines()] or [type(error).__name__]
            first = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
            first = textwrap.shorten(first, 240, placeholder=" …").rstrip(".")
            where = "" if Path(self.name).is_dir() else " It is no local folder, and the hub did not give it."
            raise InputError(f'the {self.what} of "{self.name}" cannot be loaded: {first}.{where}') from error
