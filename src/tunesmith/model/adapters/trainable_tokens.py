"""Trainable tokens: of the whole model only the rows of the tokens in model.new_tokens are trained."""

from typing import Any

from tunesmith.model.adapters._attached import Attached

RATE = 10.0


def attach(model: Any) -> Attached:
    """Freeze the model; the rows are made trained ones after the adapter, as with any other. The result is PEFT's TRAINABLE_TOKENS."""
    from tunesmith.model.token_files import TokensModel

    return Attached(TokensModel(model))
