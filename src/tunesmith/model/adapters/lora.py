"""LoRA (Hu et al., 2021, arXiv 2106.09685): y = x W^T + (alpha / r) x A^T B^T with W frozen; PEFT's config and file format."""

import re
import warnings
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError

ALL = "all-linear"


def attach(
    model: Any,
    *,
    r: Annotated[int, Field(gt=0, le=8192)] = 16,
    alpha: Annotated[float, Field(gt=0)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    target_modules: str | list[str] = ALL,
    target_parameters: list[str] | None = None,
    rslora: bool = False,
) -> Any:
    """Return the model as a PeftModel with fresh A (Kaiming) and B (zeros) on the targets; alpha defaults to 2 r.

    target_parameters (PEFT's) names parameters that are no linear layer's: a mixture's experts, stacked in three dimensions, get
    an A and a B each. "all-linear" reaches experts too, and the routers of Mixtral and Qwen's kind, as PEFT has it for those (with
    rank 2 r and alpha 2 alpha where gate and up projections are one parameter). InputError where targets match nothing or
    are the output layer, and for dropout on experts, which PEFT cannot apply.
    """
    from peft import LoraConfig, get_peft_model

    experts = expert_parameters(model)
    _check_parameters(model, target_parameters or [], experts)
    if target_parameters is None and target_modules == ALL and experts:
        target_parameters = experts
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        target_parameters=target_parameters,
        use_rslora=rslora,
    )
    if dropout and (target_parameters or (experts and target_modules == ALL)):
        raise InputError(
            f"adapter.dropout {dropout:g}: PEFT has no dropout for parameters such as {(target_parameters or experts)[0]}; set it "
            "to 0, or list the adapter.target_modules."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, re.error) as e:  # a text is a regular expression
        head, kinds = model.get_output_embeddings(), ("Linear", "Conv1D")
        linear = sorted(
            {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if type(m).__name__ in kinds and m is not head}
        )
        raise InputError(
            f"adapter.target_modules {target_modules!r} matches nothing in this model; its linear layers are {', '.join(linear)}."
        ) from e
    head = adapted.get_base_model().get_output_embeddings()
    if hasattr(head, "base_layer"):  # the policy multiplies by the head's own weight, at scored positions only
        raise InputError(
            f"adapter.target_modules {target_modules!r} reaches the output layer, which LoRA does not train here; leave it out."
        )
    return adapted


def expert_parameters(model: Any) -> list[str]:
    """Return the names, from the block on ("mlp.experts.down_proj"), of the parameters that stack a matrix per expert."""
    names = [n.replace(".base_layer", "") for n, p in model.named_parameters() if p.ndim == 3]
    return sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names if re.search("expert|moe", n)})


def _check_parameters(model: Any, given: list[str], experts: list[str]) -> None:
    names = [n for n, _ in model.named_parameters()]
    for target in given:
        if not any(n == target or n.endswith(f".{target}") for n in names):
            there = f"its experts' are {', '.join(experts)}" if experts else "it has no experts"
            raise InputError(f'adapter.target_parameters: no parameter of this model ends in "{target}"; {there}.')


def reach(adapted: Any) -> str | None:
    """Return a sentence on whether LoRA reaches a mixture's experts; None for models that have none."""
    names = ", ".join(expert_parameters(adapted.get_base_model()))
    if not names:
        return None
    if any(re.search("expert|moe", n) for n, p in adapted.named_parameters() if p.requires_grad):
        return f"LoRA reaches the experts ({names})"
    return f"LoRA leaves the experts as they are; adapter.target_parameters [{names}] would reach them"
