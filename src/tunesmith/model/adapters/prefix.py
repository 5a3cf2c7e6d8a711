"""Prefix tuning (Li & Liang, 2021, arXiv 2101.00190): keys and values of virtual tokens are learned in every layer; PEFT's file format."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters import _rate, _virtual
from tunesmith.model.adapters._attached import Attached

MERGES = False  # it adds tokens to the model's cache and changes none of its weights
# keys and values are numbers around 1, and few attend to them; measured at widths 32, 128 and 192, 0.03 to 3.8
LEARNING_RATE = 1.0
PROJECTED = 30.0  # a network's weights learn at this many times full fine-tuning's rate (measured: 10 to 30)


def attach(
    model: Any,
    *,
    tokens: Annotated[int, Field(gt=0)] = 20,
    projection: bool = False,
    hidden: Annotated[int, Field(gt=0)] | None = None,
) -> Attached:
    """Put keys and values of `tokens` virtual tokens before every sequence, in every layer; the model is frozen.

    projection: they are tanh's two-layer network (of width `hidden`, PEFT's default the width of a token's keys) of embeddings, the
    paper's section 4.3; the file holds what it gives. InputError for models whose layers keep no such keys and values.
    """
    from peft import PrefixTuningConfig

    layers, heads, size = _virtual.cache_shape(model)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=tokens,
        prefix_projection=projection,
        encoder_hidden_size=hidden or heads * size,
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * size,
    )
    attached = _virtual.wrap(model, config)
    found = (config.num_layers, config.num_attention_heads, config.token_dim // config.num_attention_heads)
    if found != (
        layers,
        heads,
        size,
    ):  # PEFT reads the model's config in its own way, also when it loads the file again
        raise InputError(
            f"adapter: PEFT takes the keys of this model ({model.config.model_type}) for {found[1]} heads of {found[2]}, but they are "
            f"{heads} of {size}, so it cannot do prefix tuning here; take the adapter prompt or lora."
        )
    if not projection:
        return attached
    trained = [n for n, p in attached.model.named_parameters() if p.requires_grad]
    projected = PROJECTED * _rate.full(model.config.get_text_config().hidden_size) / LEARNING_RATE
    return replace(attached, ratios=dict.fromkeys(trained, projected))
