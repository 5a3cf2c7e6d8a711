"""LoRA (Hu et al., 2021, arXiv 2106.09685): y = x W^T + (alpha / r) x A^T B^T with W frozen; PEFT's config and file format."""

from typing import Any

from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, attach_lora, reach
from tunesmith.model.adapters._peft import ALL


def attach(
    model: Any,
    *,
    r: Rank = 16,
    alpha: Alpha | None = None,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    target_parameters: list[str] | None = None,
    layers_to_transform: list[int] | None = None,
) -> Attached:
    """Attach to the model, as a PeftModel, fresh A (Kaiming) and B (zeros) on the targets; alpha defaults to 2 r.

    target_parameters (PEFT's) names parameters that are no linear layer's: a mixture's experts, stacked in three dimensions, get
    an A and a B each. "all-linear" reaches experts too, and the routers of Mixtral and Qwen's kind, as PEFT has it for those (with
    rank 2 r and alpha 2 alpha where gate and up projections are one parameter). layers_to_transform: the layers' numbers, from 0,
    or from the last for negative ones. InputError where targets match nothing or are the output layer, for a rank above a
    target's matrix, and for dropout on experts, which PEFT cannot apply.
    """
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        target_parameters=target_parameters,
        layers_to_transform=layers_to_transform,
    )
    return Attached(adapted, notices=reach(adapted))
