"""A model's structure, known before its weights are loaded: on no device, and in a few numbers."""

from typing import Any

from tunesmith.errors import InputError
from tunesmith.model.loading import STARTER, ModelSource, auto_class
from tunesmith.training.infer import Shape


def said_name(base: str) -> str:
    """Return what people call a base model."""
    return "starter" if base == str(STARTER) else base


def meta_model(config: Any, source: ModelSource) -> Any:
    """Return the model's structure without memory for its weights."""
    import torch

    try:
        with torch.device("meta"):
            return auto_class(source).from_config(config)
    except Exception as e:  # a config is the user's: whatever the model's code says of it is about the config
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InputError(
            f'the model "{said_name(source.base)}" is none that writes text, or its config is wrong: {first[:200].rstrip(".")}.'
        ) from e


def shape(config: Any, model: Any) -> Shape:
    """Return the numbers that memory and rates are inferred from; InputError where they are no trained model's."""
    text = config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    feedforward = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    context = getattr(text, "max_position_embeddings", None)
    if not (parameters and text.hidden_size > 0 and text.num_hidden_layers > 0):
        raise InputError(
            f"the model's config.json asks for {text.num_hidden_layers} layers of width {text.hidden_size}: it is not the config "
            "of a trained model; fetch or copy it again."
        )
    heads = getattr(text, "num_attention_heads", None) or 0
    width = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    attention = 2 * width * (heads + (getattr(text, "num_key_value_heads", None) or heads))
    return Shape(
        parameters,
        text.hidden_size,
        feedforward
        * (getattr(text, "num_experts_per_tok", None) or 1),  # of a mixture a token goes through several blocks
        text.num_hidden_layers,
        context,
        text.vocab_size,
        heads=heads,
        attention=attention,
    )
