"""A transformers model within another module that adds to it, as PEFT's PeftModel does."""

from typing import Any

from torch import nn


class Wrapped(nn.Module):
    """Computes as its model, and has what its model has; config: what PeftModel's is asked for."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        self.base_model, self.peft_config = model.requires_grad_(False), {"default": config}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def get_base_model(self) -> Any:
        """Return the transformers model, in which the adapter is."""
        return self.base_model
