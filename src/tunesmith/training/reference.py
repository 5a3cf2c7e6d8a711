"""The reference of DPO and its like: what the run file says of it, and whether it can be one, found before any weight is loaded.

It is the policy as the run begins (start), nothing (none: log u is log p), or another model. Its log-probs are computed once, before
the first step (reference_logps.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from tunesmith import registry
from tunesmith.arguments import Section, checked
from tunesmith.data.records import Examples
from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import quantize
from tunesmith.model.loading import ModelSource, adapter_config, check_weights, load_config, load_tokenizer, resolve
from tunesmith.model.quantize import Name
from tunesmith.model.reward_config import is_reward

START, NONE, STARTER = "start", "none", "starter"
KEY = "objective.reference"
ROWS = 4  # that both tokenizers read


class Model(Section):
    """Another model: as in the run file's section `model`."""

    path: str
    quantize: Name | None = None
    double_quantization: bool | None = None


def _option(given: Any) -> str | dict[str, Any]:
    if isinstance(given, str) and given.strip():
        return given
    if isinstance(given, Mapping):
        return checked(Model, given, KEY).model_dump(exclude_none=True)
    raise PydanticCustomError("reference", "start, none, a model, or {path: MODEL, quantize: nf4}")


Option = Annotated[str | dict[str, Any], BeforeValidator(_option)]


def asked(objective: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return what the run file's section says of the reference: start where it says nothing, none for an objective without one."""
    if not getattr(registry.load("training.objectives", objective["name"]), "reference", False):
        return NONE
    return objective.get("reference", START)  # type: ignore[no-any-return]


def name(objective: Mapping[str, Any]) -> str:
    """Return what the run file calls the reference."""
    option = asked(objective)
    if isinstance(option, str):
        return option
    how = option.get("quantize", "none")
    return str(option["path"]) if how == "none" else f"{option['path']} in {how}"


def source(objective: Mapping[str, Any]) -> ModelSource | None:
    """Return the other model that is asked for, None for start and none; InputError where there is none of that name."""
    option = asked(objective)
    if option in (START, NONE):
        return None
    given = Model(path=option) if isinstance(option, str) else Model(**option)
    near = did_you_mean(given.path, (START, NONE, STARTER))
    if near.startswith(" Did") and given.path.isalpha() and given.path != STARTER and not Path(given.path).exists():
        raise InputError(f'{KEY}: there is no model "{given.path}".{near}')
    try:
        found = resolve(given.path)
    except InputError as e:
        raise InputError(f"{KEY}: {e} ({START} is the policy as the run begins, {NONE} no reference.)") from e
    if given.quantize is None:
        return found
    how = (
        None
        if given.quantize == "none"
        else quantize.Quantization(given.quantize, given.double_quantization is not False)
    )
    return replace(found, quantize=how)


def refuse_reward_model(found: ModelSource, config: Any, what: str) -> None:
    """InputError where a model, `what` it is given as, scores answers instead of writing them."""
    task = adapter_config(found.adapter).get("task_type") if found.adapter else None
    if is_reward(config) or task == "SEQ_CLS":
        raise InputError(
            f"{what} {found.adapter or found.base} is a reward model (sequence classification): it scores answers and gives their words "
            "no probabilities; give a language model, such as the one it was trained from."
        )


def check(found: ModelSource, called: str, tokenizer: Any, sets: Sequence[Examples], device: str) -> None:
    """InputError where another model cannot be the reference of these sets' examples, which `tokenizer` made; no weight is loaded.

    Its tokenizer must give the same ids: those of every token that the policy's knows, and of the first examples' texts.
    """
    try:
        check_weights(found)
        config = load_config(found)
        theirs, _ = load_tokenizer(found)
    except InputError as e:
        raise InputError(f"{KEY}: {e}") from e
    refuse_reward_model(found, config, f"{KEY}:")
    quantize.check(found.quantize, config, called, device, f"{KEY}.quantize")
    if differs := _difference(tokenizer, theirs, sets[0]):
        raise InputError(
            f"{KEY}: the tokenizer of {called} differs from the policy's: {differs}; a reference reads the same ids, so take a model of "
            "the same family."
        )
    text = config.get_text_config()
    most, longest, context = (
        max(int(s.ids.max()) for s in sets),
        max(int(s.lengths.max()) for s in sets),
        getattr(text, "max_position_embeddings", None),
    )
    if found.adapter is None and most >= text.vocab_size:
        raise InputError(f"{KEY}: the vocabulary of {called} has {text.vocab_size} tokens, the data have token {most}.")
    if context is not None and longest > context:
        raise InputError(
            f"{KEY}: the context of {called} is {context} tokens, the longest example has {longest}; lower train.max_length."
        )


def _difference(ours: Any, theirs: Any, examples: Examples) -> str | None:
    """Return in words how the second tokenizer gives other ids than the first, None where it does not."""
    known, other = ours.get_vocab(), theirs.get_vocab()
    wrong = [token for token, i in known.items() if other.get(token) != i]
    if wrong:
        token = min(wrong, key=known.__getitem__)
        there = f"is {other[token]} there" if token in other else "is not there"
        more = f" and {len(wrong) - 1:,} other tokens" if len(wrong) > 1 else ""
        return f'"{token}"{more}, token {known[token]} of the policy, {there}'
    for start, stop in islice(zip(examples.offsets, examples.offsets[1:], strict=False), ROWS):
        text = ours.decode(examples.ids[start:stop].tolist())
        mine, yours = (t(text, add_special_tokens=False).input_ids for t in (ours, theirs))
        at = next((i for i, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), None)
        if mine != yours:
            place = min(len(mine), len(yours)) if at is None else at
            return f'it cuts other tokens from "{ours.decode(mine[max(0, place - 2) : place + 6])}"'
    return None
