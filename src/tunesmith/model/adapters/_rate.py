"""The learning rate that goes with an adapter where the run file names none, over the one that full fine-tuning would have.

An adapter's module states RATE, that factor (absent: LoRA's 10), or LEARNING_RATE, a rate of its own: what it trains is no weight, and
its numbers are as large in a narrow model as in a wide one.
"""

from typing import Any

LORA = 10.0


def full(width: int) -> float:
    """Return full fine-tuning's rate at the hidden width, 5e-5 (2000 / width)^0.781 (Schulman et al., LoRA Without Regret, 2025)."""
    return 5e-5 * (2000 / width) ** 0.781  # type: ignore[no-any-return]


def factor(adapter: Any, width: int) -> float:
    """Return what full fine-tuning's rate at the width is multiplied by for the adapter (its module)."""
    own = getattr(adapter, "LEARNING_RATE", None)
    return float(getattr(adapter, "RATE", LORA) if own is None else own / full(width))
