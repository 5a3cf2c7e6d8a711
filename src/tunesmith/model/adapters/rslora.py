"""rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732): LoRA scaled by alpha / sqrt(r), so that high ranks learn as stably as low ones."""

from typing import Any

from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, attach_lora, reach
from tunesmith.model.adapters._peft import ALL


def attach(
    model: Any,
    *,
    r: Rank = 16,
    alpha: Alpha = 8.0,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    target_parameters: list[str] | None = None,
    layers_to_transform: list[int] | None = None,
) -> Attached:
    """Attach LoRA scaled by alpha / sqrt(r). alpha does not follow the rank: its default, 8, is LoRA's own scale, 2, at rank 16."""
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        target_parameters=target_parameters,
        layers_to_transform=layers_to_transform,
        use_rslora=True,
    )
    return Attached(adapted, notices=reach(adapted))
