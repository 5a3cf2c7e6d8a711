"""What LoRA and its relatives share: options, targets (a mixture's experts too), layers, and the check of the rank."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters._peft import ALL, ends_in, linear_names, wrap
from tunesmith.model.quantize import is_quantized

Rank = Annotated[int, Field(gt=0, le=8192)]
Alpha = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Targets = str | list[str]


def attach_lora(
    model: Any,
    *,
    r: int,
    alpha: float | None,
    dropout: float,
    target_modules: Targets,
    layers_to_transform: list[int] | None,
    target_parameters: list[str] | None = None,
    experts: bool = True,
    **more: Any,
) -> Any:
    """Return the model as a PeftModel with fresh A (Kaiming) and B (zeros) on the targets; alpha defaults to 2 r.

    experts: whether "all-linear" reaches a mixture's experts. more: of PEFT's LoraConfig.
    """
    from peft import LoraConfig

    stacked = expert_parameters(model)
    _check_parameters(model, target_parameters or [], stacked)
    every = target_modules == ALL and layers_to_transform is None
    if target_parameters is None and every and experts and stacked:
        target_parameters = stacked
    if every and stacked and not experts:  # PEFT's "all-linear" reaches the experts of some families
        target_modules = linear_names(model)
    if dropout and target_parameters:
        raise InputError(
            f"adapter.dropout {dropout:g}: PEFT has no dropout for parameters such as {target_parameters[0]}; set it to 0, or list "
            "the adapter.target_modules."
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_parameters=target_parameters,
        **chosen(model, target_modules, layers_to_transform),
        **more,
    )
    adapted = wrap(model, config)
    check_rank(adapted, r)
    return adapted


def chosen(model: Any, target_modules: Targets, layers: list[int] | None) -> dict[str, Any]:
    """Return PEFT's target_modules and layers_to_transform; negative layers count from the last."""
    if layers is None:
        return {"target_modules": target_modules}
    n = model.config.get_text_config().num_hidden_layers
    beyond = next((i for i in layers if not -n <= i < n), None)
    if beyond is not None or not layers:
        found = f"has {beyond}, but" if layers else "is empty;"
        raise InputError(f"adapter.layers_to_transform {found} this model's layers are 0 to {n - 1}.")
    if isinstance(target_modules, str) and target_modules != ALL:
        raise InputError(
            "adapter.layers_to_transform goes with a list of adapter.target_modules; an expression says the layers itself."
        )
    names = linear_names(model) if target_modules == ALL else target_modules
    return {"target_modules": names, "layers_to_transform": sorted({i % n for i in layers})}


def lora_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of the layers that hold an A and a B."""
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def check_rank(adapted: Any, r: int) -> None:
    """InputError for the first layer whose matrix has fewer rows or columns than the rank: it cannot have that rank.

    Routers are as narrow as there are experts; they get the rank like the others, as in PEFT.
    """
    for name, layer in lora_layers(adapted):
        rows, columns = layer.out_features, layer.in_features
        if r > min(rows, columns) and not re.search(r"(router|gate)$", name):
            raise InputError(
                f"adapter rank {r} is above that of {name}, a matrix of {rows} x {columns}; set it to {min(rows, columns)} at most, or "
                "leave that layer out of adapter.target_modules."
            )


def refuse_quantized(model: Any, why: str) -> None:
    """InputError where the model's weights are quantised."""
    name = next((n for n, m in model.named_modules() if is_quantized(m)), None)
    if name is not None:
        raise InputError(f"{why}, but {name} is quantised; leave model.quantize out.")


def expert_parameters(model: Any) -> list[str]:
    """Return the names, from the block on ("mlp.experts.down_proj"), of the parameters that stack a matrix per expert."""
    names = [n.replace(".base_layer", "") for n, p in model.named_parameters() if p.ndim == 3]
    return sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names if re.search("expert|moe", n)})


def _check_parameters(model: Any, given: list[str], experts: list[str]) -> None:
    names = [n for n, _ in model.named_parameters()]
    for target in given:
        if not ends_in(names, target):
            there = f"its experts' are {', '.join(experts)}" if experts else "it has no experts"
            raise InputError(f'adapter.target_parameters: no parameter of this model ends in "{target}"; {there}.')


def left_out(adapted: Any, method: str) -> tuple[str, ...]:
    """Return a sentence on the experts that the method leaves as they are; none for models that have none."""
    names = ", ".join(expert_parameters(adapted.get_base_model()))
    return (f"{method} leaves the experts ({names}) as they are; LoRA reaches them",) if names else ()


def reach(adapted: Any) -> tuple[str, ...]:
    """Return a sentence on whether the adapter reaches a mixture's experts; none for models that have none."""
    names = ", ".join(expert_parameters(adapted.get_base_model()))
    if not names:
        return ()
    if any(re.search("expert|moe", n) for n, p in adapted.named_parameters() if p.requires_grad):
        return (f"LoRA reaches the experts ({names})",)
    return (f"LoRA leaves the experts as they are; adapter.target_parameters [{names}] would reach them",)
