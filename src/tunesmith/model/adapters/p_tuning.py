"""P-tuning (Liu et al., 2021, arXiv 2103.10385): the embeddings of virtual tokens come out of a small trained network; PEFT's format."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.model.adapters import _virtual
from tunesmith.model.adapters._attached import Attached

MERGES = False  # it adds tokens before the text and changes none of the model's weights
RATE = 10.0  # measured on the starter (10 and 30): the encoder is a network like others


def attach(
    model: Any,
    *,
    tokens: Annotated[int, Field(gt=0)] = 20,
    encoder: Literal["MLP", "LSTM"] = "MLP",
    hidden: Annotated[int, Field(gt=0)] | None = None,
    layers: Annotated[int, Field(gt=0)] = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> Attached:
    """Put `tokens` virtual tokens before every sequence, whose embeddings `encoder` makes; the model is frozen.

    hidden: the encoder's width (default: the embeddings'). layers and dropout are the LSTM's; the MLP always has three layers
    and no dropout, as PEFT has it. The file holds the embeddings that come out.
    """
    from peft import PromptEncoderConfig

    width = _virtual.width(model)
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        token_dim=width,
        encoder_reparameterization_type=encoder,
        encoder_hidden_size=hidden or width,
        encoder_num_layers=layers,
        encoder_dropout=dropout,
    )
    return _virtual.wrap(model, config)
