"""What attaching an adapter leaves: the model, and what the run must know beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.training.companions import Companion


@dataclass(frozen=True)
class Attached:
    """model: with requires_grad set on what is trained, `save_pretrained`, and `get_base_model` where it wraps the model.

    ratios: by the name of a parameter of `model`, what its learning rate is multiplied by (absent: 1). companion: what the adapter
    does at every step. notices: sentences for people.
    """

    model: Any
    ratios: Mapping[str, float] = field(default_factory=dict)
    companion: Companion | None = None
    notices: tuple[str, ...] = ()
