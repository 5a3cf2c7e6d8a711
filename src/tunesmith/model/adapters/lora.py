"""LoRA (Hu et al., 2021, arXiv 2106.09685): y = x W^T + (alpha / r) x A^T B^T with W frozen; PEFT's config and file format."""

from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError


def attach(
    model: Any,
    *,
    r: Annotated[int, Field(gt=0)] = 16,
    alpha: Annotated[float, Field(gt=0)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    target_modules: str | list[str] = "all-linear",
    rslora: bool = False,
) -> Any:
    """Return the model as a PeftModel with fresh A (Kaiming) and B (zeros) on `target_modules`; alpha defaults to 2 r.

    InputError where the target modules match nothing, or the output layer.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=rslora,
    )
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as e:
        linear = sorted(
            {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
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
