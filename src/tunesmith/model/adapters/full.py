"""Full fine-tuning: every weight is trained."""

from typing import Any

from tunesmith.model.adapters._attached import Attached

RATE = 1.0  # of the rule for full fine-tuning, by which every adapter states its own; absent: 10, LoRA's


def attach(model: Any) -> Attached:
    """Train every parameter; the result is a transformers folder."""
    return Attached(model.requires_grad_(True))
