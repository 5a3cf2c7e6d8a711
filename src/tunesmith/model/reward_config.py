"""What a reward model's config says: what each of its scores is called, what it weighs, and which token is only padding.

A reward model is transformers' sequence classification: a trunk and a linear layer `score` on the hidden state of a row's last token.
transformers takes the rightmost token that is not `pad_token_id` for the last one.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.model.loading import ModelSource

Attributes = tuple[tuple[str, float], ...]
"""What a reward model scores, and the weight of each in the combined score, in the order of its outputs."""

ONE: Attributes = (("reward", 1.0),)
WEIGHTS = "reward_weights"  # the key of the config
TASK = "SEQ_CLS"  # what PEFT calls it


def asked(given: str | Iterable[str] | Mapping[str, float] | None, key: str = "objective.attributes") -> Attributes:
    """Return the attributes of a name, a list of names (alike in weight, 1 in all) or {name: weight}; None: one score, "reward".

    InputError for none, an empty name, one that is there twice, and weights that are all 0.
    """
    if given is None:
        return ONE
    if isinstance(given, Mapping):
        found = tuple((str(name), float(weight)) for name, weight in given.items())
    else:
        names = [given] if isinstance(given, str) else [str(name) for name in given]
        found = tuple((name, 1 / len(names)) for name in names)
    names = [name for name, _ in found]
    if not names or not all(name.strip() for name in names):
        raise InputError(f"{key} should name what is scored, as {{helpful: 0.7, harmless: 0.3}}; found {given!r}.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{key} names {twice} twice; once is enough.")
    if not any(weight for _, weight in found):
        raise InputError(f"{key}: all weights are 0, so that the combined score would be 0 for every answer.")
    return found


def is_reward(config: Any) -> bool:
    """Whether a transformers config says that its files are a model's that classifies whole sequences."""
    return any("ForSequenceClassification" in str(name) for name in getattr(config, "architectures", None) or [])


def scores(folder: Path) -> bool:
    """Whether a folder holds a reward model, or the adapter of one that tunesmith trained."""
    return any("ForSequenceClassification" in str(name) for name in _stored(str(folder)).get("architectures") or [])


def is_scorer(model: Any) -> bool:
    """Whether a transformers model is one that classifies whole sequences."""
    return type(model).__name__.endswith("ForSequenceClassification")


def attributes_of(config: Any) -> Attributes:
    """Return what the config of a classification model says; scores without a name are "reward", or "reward_0", "reward_1", ..."""
    labels = {int(i): str(name) for i, name in config.id2label.items()}
    names = [labels.get(i, f"LABEL_{i}") for i in range(len(labels))]
    if names == [f"LABEL_{i}" for i in range(len(names))]:
        names = ["reward"] if len(names) == 1 else [f"reward_{i}" for i in range(len(names))]
    weights = getattr(config, WEIGHTS, None)
    if not isinstance(weights, Mapping) or set(weights) != set(names):
        weights = dict.fromkeys(names, 1 / len(names))
    return tuple((name, float(weights[name])) for name in names)


def describe(config: Any, attributes: Attributes) -> Any:
    """Return the config with what its outputs are called and weigh written in; they are numbers, no classes."""
    config.id2label = {i: name for i, (name, _) in enumerate(attributes)}
    config.label2id = {name: i for i, (name, _) in enumerate(attributes)}
    config.problem_type = "regression"
    setattr(config, WEIGHTS, dict(attributes))
    return config


def made(config: Any, attributes: Attributes, adapter: str | None, base: str) -> Any:
    """Return a base model's config as that of a reward model; InputError where transformers has no such model of its family."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"transformers has no sequence classification of {config.model_type} models, which a reward model is saved as, so none can be "
            f"made of {base}; take a model of another family (llama, qwen, mistral, gemma, phi, ...)."
        )
    stored = _stored(adapter)
    if "pad_token_id" in stored:
        config.pad_token_id = config.get_text_config().pad_token_id = stored["pad_token_id"]
    return describe(config, attributes)


def of_adapter(adapter: str, base: Any) -> Attributes:
    """Return what a reward model's adapter scores, by the config beside it or by its head; InputError where it is none.

    base: the base's config.
    """
    from tunesmith.model.loading import adapter_config, safetensors_shapes

    if (task := adapter_config(adapter).get("task_type")) != TASK:
        raise InputError(
            f"{adapter} is an adapter of a model that writes ({task or 'CAUSAL_LM'}), no reward model; {_wanted()}"
        )
    from transformers import PretrainedConfig

    stored = _stored(adapter)
    if "id2label" in stored:
        return attributes_of(
            PretrainedConfig(**{k: stored[k] for k in ("id2label", "label2id", WEIGHTS) if k in stored})
        )
    file = Path(adapter) / "adapter_model.safetensors"
    heads = (
        [s for name, s in safetensors_shapes(file).items() if name.endswith("score.weight")] if file.is_file() else []
    )
    if heads and heads[0][0] != len(base.id2label):
        return attributes_of(PretrainedConfig(num_labels=heads[0][0]))
    return attributes_of(base)


def reward_source(source: "ModelSource") -> "ModelSource":
    """Return the source of a trained reward model with what it scores; InputError where the model is none."""
    from tunesmith.model.loading import base_config

    config = base_config(source)
    if source.adapter is not None:
        return replace(source, attributes=of_adapter(source.adapter, config))
    if not is_reward(config):
        raise not_reward(source.base, config)
    return replace(source, attributes=attributes_of(config))


def to_train(source: "ModelSource", given: Any) -> "ModelSource":
    """Return the source of a reward model to be trained: a new one that scores the attributes `given`, as `asked` takes them, or one that
    goes on; InputError where that scores others.
    """
    from tunesmith.model.loading import base_config

    config = base_config(source)
    if source.adapter is None and not is_reward(config):
        return replace(source, attributes=asked(given))
    found = of_adapter(source.adapter, config) if source.adapter else attributes_of(config)
    return replace(source, attributes=agreed(found, given, source.adapter or source.base))


def agreed(found: Attributes, given: Any, name: str) -> Attributes:
    """Return what a reward model that is trained on scores: as it is, or with the names and weights asked for; InputError where these
    are not as many, or other ones than it has names for."""
    if given is None:
        return found
    wanted = asked(given)
    names, own = [n for n, _ in wanted], [n for n, _ in found]
    nameless = own[0] == "reward" or own[0] == "reward_0"
    if len(names) != len(own) or (sorted(names) != sorted(own) and not nameless):
        raise InputError(
            f"{name} scores {', '.join(own)}, but objective.attributes names {', '.join(names)}; leave it out, or begin with a model that "
            "writes."
        )
    return wanted if nameless else tuple((n, dict(wanted)[n]) for n in own)


def _stored(adapter: str | None) -> dict[str, Any]:
    """Return the config that tunesmith keeps beside a reward model's adapter, {} where there is none."""
    file = Path(adapter) / "config.json" if adapter else None
    if file is None or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise InputError(f"{file} is no readable JSON; fetch or copy it again.") from e
    return found if isinstance(found, dict) else {}


def save(model: Any, folder: Path) -> None:
    """Write a reward model's config beside its adapter, for who loads its base (AutoConfig of the adapter's folder)."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the base in memory; its files have none
    config.save_pretrained(folder)


def begun(model: Any, base: Any) -> Any:
    """Return the model; where `base`, the config of its files, is no reward model's, with a head that begins with zeros.

    So the first loss is that of a model that knows nothing, whatever the seed, and no random direction has to be unlearnt. As in LoRA,
    whose B is 0, the trunk has a gradient from the second step on.
    """
    if not is_reward(base):
        model.score.weight.data.zero_()
    return model


def refuse(config: Any, name: str) -> None:
    """InputError where a config is a reward model's, which is asked to write."""
    if is_reward(config):
        raise InputError(
            f"{name} is a reward model ({config.architectures[0]}): it scores answers and writes none; give the model that is to write, "
            "or use this one with tunesmith score."
        )


def not_reward(name: str, config: Any) -> InputError:
    """Return the refusal of a model that scores nothing."""
    kind = (getattr(config, "architectures", None) or ["no ...ForSequenceClassification"])[0]
    return InputError(f"{name} is no reward model ({kind}): it writes text and scores none; {_wanted()}")


def _wanted() -> str:
    return "give a run with the objective reward, or a folder or hub id of a ...ForSequenceClassification model."


def padding(tokenizer: Any, ends: Iterable[int]) -> int | None:
    """Return the token to pad with, so that transformers finds the last token of rows that end with one of `ends`: the tokenizer's own
    padding, else its unknown token, its first, or another special one; None where every special token ends rows.
    """
    taken = set(ends)
    options = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *tokenizer.all_special_ids]
    options += sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return next((i for i in options if i is not None and i not in taken), None)


def set_padding(config: Any, tokenizer: Any, ends: Iterable[int]) -> str | None:
    """Let config and tokenizer pad with `padding`'s token, in place; return a sentence for people where there is none."""
    found = padding(tokenizer, ends)
    config.pad_token_id = config.get_text_config().pad_token_id = found
    if found is None:
        return (
            "the tokenizer has no token that never ends an answer, so transformers takes the reward model's rows one at a time "
            "(pad_token_id is none)"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found)
    return None
