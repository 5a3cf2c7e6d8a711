"""Adapters as folders: PEFT's own kinds and the bottleneck adapters beside them, checked against their base before weights are loaded."""

import re
import warnings
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import bottleneck, new_tokens, token_files
from tunesmith.model.loading import adapter_config, safetensors_shapes
from tunesmith.model.reward_config import TASK, is_scorer
from tunesmith.model.token_files import BESIDE, WEIGHTS

UNMATCHED = (
    "not found in the base model",
    "No modules were targeted",
    "No layers types compatible",
)  # PEFT's own words
METHODS = {
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "prompt",
    "IA3": "ia3",
    "ADALORA": "adalora",
    "LN_TUNING": "layernorm",
    bottleneck.KIND: "bottleneck",
}  # of the others each has LoRA's rate


def kind(adapter: str) -> str:
    """Return the kind of an adapter's folder, as "LORA" or "BOTTLENECK"; InputError where it is none that can be loaded."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config = adapter_config(adapter)
    found = config.get("peft_type")
    known = [*(str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING), bottleneck.KIND]
    if found not in known:
        said = "no peft_type" if found is None else f'the peft_type "{found}"'
        hint = did_you_mean(str(found), known) or f" PEFT here knows {', '.join(sorted(known))}."
        raise InputError(f"{adapter}/adapter_config.json has {said}, which cannot be loaded.{hint}")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM", TASK):
        raise InputError(
            f"{adapter} is an adapter for {task}; tunesmith trains models that write (CAUSAL_LM) or score answers ({TASK})."
        )
    return str(found)


def check(adapter: str, base: Any, name: str) -> None:
    """InputError, naming shapes and bases, unless the adapter's file fits `base`, a model on device "meta" called `name`.

    The adapter is attached to the model without memory and loaded as it would be, so that what PEFT passes over in silence (tensors
    that belong nowhere, modules that get none) is found too.
    """
    import torch

    sort = kind(adapter)
    if adapter_config(adapter).get("task_type") == TASK and not is_scorer(base):
        raise InputError(
            f"{adapter} is an adapter for SEQ_CLS, a reward model's: it scores answers and writes none; give one that writes, or use it "
            "with tunesmith score."
        )
    file = Path(adapter) / WEIGHTS
    if not file.is_file():
        return  # a folder in the hub's cache, which PEFT reads
    with torch.device("meta"):
        tensors = {
            key: torch.empty(shape) for key, shape in safetensors_shapes(file).items() if not key.endswith(BESIDE)
        }
    trained_on = _trained_on(adapter, name)
    new_tokens.grow(base, token_files.size(adapter, base))
    for rows in token_files.kept(adapter):
        module = dict(base.named_modules()).get(rows.module)
        if module is None:
            raise InputError(_nowhere(adapter, name, rows.key, rows.shape, trained_on))
        wanted = [len(rows.ids), *module.weight.shape[1:]]
        if rows.shape != wanted:
            raise InputError(_wrong_shape(adapter, name, rows.key, rows.shape, wanted, trained_on))
    if sort == token_files.KIND:
        return
    if sort == bottleneck.KIND:
        mine = bottleneck.BottleneckModel(base, bottleneck.read_config(adapter)).adapters()
        missing, unexpected = mine.keys() - tensors.keys(), tensors.keys() - mine.keys()
        for key in sorted(mine.keys() & tensors.keys()):
            if mine[key].shape != tensors[key].shape:
                raise InputError(_wrong_shape(adapter, name, key, tensors[key].shape, mine[key].shape, trained_on))
    else:
        missing, unexpected = _loaded(adapter, base, name, tensors, trained_on)
    if unexpected:
        key = min(unexpected)
        raise InputError(_nowhere(adapter, name, key, list(tensors[key].shape), trained_on))
    if missing:
        raise InputError(
            f"the adapter {adapter} does not fit the model {name}: its file lacks {_module(min(missing))}, which that model needs"
            f"{trained_on}."
        )


def _loaded(adapter: str, base: Any, name: str, tensors: dict[str, Any], trained_on: str) -> tuple[set[str], set[str]]:
    """Return the tensors the file lacks, and those that belong nowhere, by PEFT's own loading on the model without memory."""
    from peft import PeftModelForCausalLM, PeftModelForSequenceClassification, set_peft_model_state_dict

    try:
        config = _peft_config(adapter)
    except Exception as e:  # whatever a config of theirs raises is about the user's file
        raise InputError(f"{adapter}/adapter_config.json is no config that PEFT reads: {_first(e)}.") from e
    config.inference_mode = True
    # what the file brings is what counts, and the model says how wide its keys and embeddings are
    inferred = {"num_layers": None, "token_dim": None, "num_attention_heads": None} if config.is_prompt_learning else {}
    for field, value in {"init_lora_weights": False, "init_weights": False, **inferred}.items():
        if hasattr(config, field):
            setattr(config, field, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = PeftModelForSequenceClassification if config.task_type == TASK else PeftModelForCausalLM
            adapted = made(base, config, autocast_adapter_dtype=False)
        except ValueError as e:
            if not any(words in str(e) for words in UNMATCHED):
                return set(), set()  # a kind that cannot be built without weights: loading itself will tell
            targets = getattr(config, "target_modules", None)
            names = {t.rsplit(".", 1)[-1] for t in targets or []} if not isinstance(targets, str) else {targets}
            shown = ", ".join(sorted(names))
            raise InputError(
                f"the adapter {adapter} does not fit the model {name}: its target_modules ({shown}) match nothing there{trained_on}."
            ) from e
        except Exception:
            return set(), set()
        try:
            result = set_peft_model_state_dict(adapted, tensors)
        except (RuntimeError, KeyError) as e:
            shapes = re.search(
                r"for (\S+): copying a param with shape torch.Size\((.*?)\).*torch.Size\((.*?)\)", str(e)
            )
            if shapes is None:
                return set(), set()
            key, found, wanted = shapes.groups()
            raise InputError(_wrong_shape(adapter, name, key, found, wanted, trained_on)) from e
    if config.is_prompt_learning:
        return set(), set()
    prefix = getattr(adapted.base_model, "prefix", None)
    mapped = getattr(base, "_checkpoint_conversion_mapping", None)
    every, lacking = list(adapted.named_parameters(remove_duplicate=False)), set(result.missing_keys)
    loaded = {id(p) for n, p in every if n not in lacking}  # one that many modules share is in the file once
    missing = {n for n, p in every if n in lacking and id(p) not in loaded and prefix and prefix in n}
    return missing, set() if mapped else set(result.unexpected_keys)


def load(model: Any, adapter: str, trainable: bool = False) -> Any:
    """Return the model with the adapter of a folder on it: everything frozen, or the adapter alone trained.

    Rows of new tokens that the folder brings are put into the model's vocabulary; training them on is new_tokens.train_rows's matter.
    """
    token_files.put(model, adapter)
    if kind(adapter) == token_files.KIND:
        return token_files.TokensModel(model)
    if kind(adapter) == bottleneck.KIND:
        adapted = bottleneck.load(model, adapter)
        for p in adapted.adapters().values():
            p.requires_grad_(trainable)
        return adapted
    from peft import PeftModel

    config = _peft_config(adapter)
    prompts = config.is_prompt_learning  # PEFT itself refuses to train these on
    adapted = PeftModel.from_pretrained(
        model, adapter, config=config, autocast_adapter_dtype=False, is_trainable=trainable and not prompts
    )
    if prompts or not trainable:  # some kinds are left trained by PEFT either way
        adapted.requires_grad_(False)
    if prompts and trainable:
        adapted.prompt_encoder.requires_grad_(True)
    return adapted


def _peft_config(adapter: str) -> Any:
    """Return PEFT's config of an adapter, without the rows of new tokens, which are put into the model's vocabulary itself."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    if getattr(config, "trainable_token_indices", None) is not None:
        config.trainable_token_indices = None
    return config


def method(adapter: str) -> str:
    """Return the method (model/adapters) by whose learning rate an adapter's weights are trained on.

    P-tuning's encoder is not in its file: virtual tokens go on as prompt tuning's.
    """
    return METHODS.get(kind(adapter), "lora")


def notice(adapter: str) -> str | None:
    """Return what people should know where training goes on with an adapter; None where nothing is special."""
    if adapter_config(adapter).get("peft_type") == "ADALORA":
        return "an AdaLoRA adapter has given its ranks away: training goes on with the ranks it has"
    return None


def _trained_on(adapter: str, name: str) -> str:
    base = adapter_config(adapter).get("base_model_name_or_path")
    return "" if not base or str(base) == name else f"; it was made for {base}"


def _nowhere(adapter: str, name: str, key: str, shape: list[int], trained_on: str) -> str:
    return (
        f"the adapter {adapter} does not fit the model {name}: its {_module(key)} {shape} belongs to no module of that "
        f"model{trained_on}."
    )


def _wrong_shape(adapter: str, name: str, key: str, found: Any, wanted: Any, trained_on: str) -> str:
    shapes = [s if isinstance(s, str) else str(list(s)) for s in (found, wanted)]
    return (
        f"the adapter {adapter} does not fit the model {name}: its {_module(key)} is {shapes[0]}, that model needs {shapes[1]}"
        f"{trained_on}."
    )


def _module(key: str) -> str:
    """Return a tensor's name without what PEFT wraps it in."""
    if key == "weight":  # of the embedding that holds virtual tokens
        return "prompt_embeddings"
    return re.sub(r"\.default(?=\.|$)", "", re.sub(r"^(base_model\.)?(model\.)?", "", key, count=1))


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
