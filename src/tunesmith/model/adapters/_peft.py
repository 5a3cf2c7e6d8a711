"""What every adapter made by PEFT shares: attaching its config to a model, and sentences for targets that cannot be."""

import difflib
import re
import warnings
from collections.abc import Iterable
from typing import Any

from tunesmith.errors import InputError
from tunesmith.model.reward_config import TASK, is_scorer

ALL = "all-linear"


def wrap(model: Any, config: Any) -> Any:
    """Return the model as a PeftModel with a fresh adapter of the config, in the model's own dtype; nothing else is trained.

    InputError where target_modules match nothing (wholly, or one of a list), are no regular expression or reach the output layer.
    """
    from peft import get_peft_model

    targets = getattr(config, "target_modules", None)
    if targets is not None and not targets and not getattr(config, "target_parameters", None):
        raise InputError(nothing(model, targets))
    check_names(model, targets)
    if is_scorer(model):
        config.task_type = TASK  # by which PEFT trains and saves the head too
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set")
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except re.error as e:
        raise InputError(f"adapter.target_modules {targets!r} is no regular expression ({e}).") from e
    except ValueError as e:
        if "not found in the base model" in str(e) or "No modules were targeted" in str(e):
            raise InputError(nothing(model, targets)) from e
        raise InputError(f"adapter: PEFT refuses this: {str(e).strip().splitlines()[0].rstrip('.')}.") from e
    head = adapted.get_base_model().get_output_embeddings()
    if hasattr(head, "base_layer"):  # the policy multiplies by the head's own weight, at scored positions only
        shown = sorted(targets) if isinstance(targets, set) else targets
        raise InputError(
            f"adapter.target_modules {shown!r} reaches the output layer, which adapters do not train here; leave it out."
        )
    return adapted


def linear_names(model: Any) -> list[str]:
    """Return the last names of the model's linear layers but the output layer's, sorted."""
    head, kinds = (
        model.get_output_embeddings() or getattr(model, "score", None),
        ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt"),
    )
    return sorted(
        {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if type(m).__name__ in kinds and m is not head}
    )


def nothing(model: Any, targets: Any) -> str:
    """Return the sentence on targets that match nothing in the model."""
    shown = sorted(targets) if isinstance(targets, set) else targets
    return f"adapter.target_modules {shown!r} matches nothing in this model; its linear layers are {', '.join(linear_names(model))}."


def check_names(model: Any, targets: Any) -> None:
    """InputError for the first of listed module names that no module ends in, which PEFT would pass over where others match."""
    if targets is None or isinstance(targets, str):
        return
    names = [n for n, _ in model.named_modules()]
    missing = [t for t in sorted(targets) if not ends_in(names, t)]
    if len(missing) == len(targets) and missing:
        raise InputError(nothing(model, sorted(targets)))
    if missing:
        known = linear_names(model)
        near = difflib.get_close_matches(missing[0], known, n=1, cutoff=0.6)
        hint = f'did you mean "{near[0]}"?' if near else f"its linear layers are {', '.join(known)}."
        raise InputError(f'adapter.target_modules: no module of this model is named "{missing[0]}"; {hint}')


def ends_in(names: Iterable[str], target: str) -> bool:
    """Whether one of the dotted names is the target or ends in it."""
    return any(n == target or n.endswith(f".{target}") for n in names)
