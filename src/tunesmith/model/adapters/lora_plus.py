"""LoRA+ (Hayou et al., 2024, arXiv 2402.12354): LoRA whose B learns `ratio` times as fast as its A."""

from typing import Annotated, Any

from pydantic import Field

from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import Alpha, Dropout, Rank, Targets, attach_lora, reach
from tunesmith.model.adapters._peft import ALL

RATE = 2.5  # A's, over full fine-tuning's: with B's, 16 times that, the geometric mean is LoRA's 10


def attach(
    model: Any,
    *,
    ratio: Annotated[float, Field(gt=0)] = 16.0,
    r: Rank = 16,
    alpha: Alpha | None = None,
    dropout: Dropout = 0.0,
    target_modules: Targets = ALL,
    target_parameters: list[str] | None = None,
    layers_to_transform: list[int] | None = None,
) -> Attached:
    """Attach LoRA; the learning rate is A's, B's is `ratio` times as high (eq. 5; 16 in the paper's experiments)."""
    adapted = attach_lora(
        model,
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        target_parameters=target_parameters,
        layers_to_transform=layers_to_transform,
    )
    fast = {
        n: ratio for n, p in adapted.named_parameters() if p.requires_grad and (".lora_B." in n or "_embedding_B" in n)
    }
    return Attached(adapted, fast, notices=reach(adapted))
