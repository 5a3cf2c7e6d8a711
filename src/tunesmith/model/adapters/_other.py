"""Any other PEFT method by its own name: its config is the schema of the options, its defaults are PEFT's. None is tested here."""

import dataclasses
import inspect
import typing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._peft import ALL, wrap

RATE = 10.0
OURS = {  # PEFT's names of what has a file of its own here
    "lora": "lora",
    "adalora": "adalora",
    "ia3": "ia3",
    "ln_tuning": "layernorm",
    "prefix_tuning": "prefix",
    "prompt_tuning": "prompt",
    "p_tuning": "p-tuning",
    "trainable_tokens": "trainable_tokens",
}
ELSEWHERE = {  # what people call what is spelled in another way here
    "qlora": "lora with model.quantize nf4",
    "lora_plus": "lora+",
    "loraplus": "lora+",
}
UNFIT = {  # what needs more than a causal model and its rows
    "adaption_prompt": "it replaces the attention that tunesmith computes itself",
    "multitask_prompt_tuning": "its prompts belong to tasks that rows do not name",
    "poly": "its adapters belong to tasks that rows do not name",
    "xlora": "it mixes adapters that must be trained before",
    "cpt": "its prompt is made of rows of the data",
    "frod": "it reads weights that are not there while a run is checked",
    "shadow": "it runs a model of its own beside this one",
}
NOT_OPTIONS = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
NOT_OPTIONS |= {"inference_mode", "modules_to_save"}


def names() -> list[str]:
    """Return the methods of the installed PEFT that have no file here, by its folders: PEFT is not imported."""
    spec = find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        return []
    tuners = Path(spec.submodule_search_locations[0]) / "tuners"
    return sorted(p.parent.name for p in tuners.glob("*/config.py") if p.parent.name not in OURS)


def load(name: str) -> Any | None:
    """Return what stands for the method's module (attach, RATE), None where PEFT has none; InputError for one that cannot work here."""
    method = name.lower()
    if method in OURS:
        raise InputError(f'the adapter that PEFT calls "{name}" is named {OURS[method]} here.')
    if method in ELSEWHERE:
        raise InputError(f'"{name}" is the adapter {ELSEWHERE[method]} here.')
    if method not in names():
        return None
    import peft

    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(getattr(peft.PeftType, method.upper(), None))
    if config is None:
        return None
    why = UNFIT.get(method)
    if why is None and issubclass(config, peft.PromptLearningConfig):
        why = "of prompts only prefix, prompt and p-tuning are computed here"
    if why is not None:
        raise InputError(f"the adapter {method} of PEFT is not supported: {why}.")
    attach = partial(_attach, method, config)
    attach.__signature__ = _signature(config)  # type: ignore[attr-defined]
    return SimpleNamespace(attach=attach, RATE=RATE)


def _signature(config: Any) -> inspect.Signature:
    """Return attach's signature: keyword arguments that are the config's fields, with their types where pydantic knows them."""
    hints = typing.get_type_hints(config)
    parameters = [inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in dataclasses.fields(config):
        if not field.init or field.name in NOT_OPTIONS:
            continue
        default: Any = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        annotation = _plain(hints.get(field.name, Any))
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return inspect.Signature(parameters)


def _plain(annotation: Any) -> Any:
    """Return the annotation if a run file's values can be checked against it, else Any."""
    from pydantic import TypeAdapter

    try:
        TypeAdapter(annotation)
    except Exception:  # whatever PEFT wrote there
        return Any
    return annotation


def _attach(method: str, kind: Any, model: Any, **options: Any) -> Attached:
    try:
        config = kind(task_type="CAUSAL_LM", **options)
    except (ImportError, ValueError, TypeError) as e:
        raise InputError(f"adapter {method}: PEFT refuses these options: {_first(e)}.") from e
    if getattr(config, "target_modules", ALL) is None and model.config.model_type not in _known(kind):
        config.target_modules = ALL  # where PEFT has no default for this family
    try:
        adapted = wrap(model, config)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, AttributeError, KeyError, AssertionError) as e:
        raise InputError(f"adapter {method}: PEFT cannot attach it to this model: {_first(e)}.") from e
    if not any(p.requires_grad for p in adapted.parameters()):
        raise InputError(f"adapter {method}: with these options nothing of this model would be trained.")
    said = f"the adapter {method} is PEFT's as it comes, untested here: its defaults are PEFT's, its learning rate is LoRA's"
    return Attached(adapted, notices=(said,))


def _known(config: Any) -> Any:
    """Return the families (model_type) for which PEFT knows a method's targets."""
    import peft

    tuner = next(
        (peft.PEFT_TYPE_TO_TUNER_MAPPING[k] for k, v in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items() if v is config), None
    )
    return getattr(tuner, "target_module_mapping", {})


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
