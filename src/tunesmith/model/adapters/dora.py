"""DoRA (Liu et al., 2024, arXiv 2402.09353): y = m (W + (alpha / r) B A) x / ||W + (alpha / r) B A||, a length m per row beside LoRA."""

from typing import Any

from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, attach_lora, left_out
from tunesmith.model.adapters._peft import ALL


def attach(
    model: Any,
    *,
    r: Rank = 16,
    alpha: Alpha | None = None,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    layers_to_transform: list[int] | None = None,
) -> Attached:
    """Attach LoRA's A and B and the rows' lengths m, which begin as W's. Experts stacked in one parameter are left as they are."""
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        layers_to_transform=layers_to_transform,
        experts=False,
        use_dora=True,
    )
    return Attached(adapted, notices=left_out(adapted, "DoRA"))
