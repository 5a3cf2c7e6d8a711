"""What the prompt-learning adapters share: PEFT's own modules around the model, and what the model is like."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.reward_config import TASK, is_scorer

if TYPE_CHECKING:
    from peft import PromptLearningConfig


def wrap(model: Any, config: "PromptLearningConfig") -> Attached:
    """Return the model with PEFT's module for the virtual tokens, in fp32, and everything else frozen.

    InputError where the virtual tokens leave no room for text.
    """
    from peft import get_peft_model

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and config.num_virtual_tokens >= context - 1:
        raise InputError(
            f"adapter.tokens {config.num_virtual_tokens} fills the model's context of {context} tokens; lower it."
        )
    model.requires_grad_(False)
    if is_scorer(model):
        config.task_type = TASK
    return Attached(get_peft_model(model, config, autocast_adapter_dtype=False))


def width(model: Any) -> int:
    """Return the width of the model's input embeddings (OPT's may be narrower than its layers)."""
    return int(model.get_input_embeddings().weight.shape[1])


def cache_shape(model: Any) -> tuple[int, int, int]:
    """Return (layers, heads, width) of the keys and values that the model keeps of a token, by a trial on a copy without memory.

    InputError where layers differ, or are none of attention.
    """
    import torch

    kind, text = model.config.model_type, model.config.get_text_config()
    try:
        with torch.device("meta"), torch.no_grad():
            twin = type(model)._from_config(deepcopy(model.config), dtype=torch.bfloat16)
            kept = twin(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True).past_key_values
        shapes = {(x.shape[1], x.shape[3]) for layer in kept.layers for x in (layer.keys, layer.values)}
    except Exception as e:  # model code raises what it likes, and whatever it raises means: no such cache
        if "item() cannot be called on meta" in str(
            e
        ):  # older transformers' OPT and Phi-3 look at positions, which have no values
            heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
            own = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            return text.num_hidden_layers, heads, own
        raise InputError(
            f"adapter: prefix tuning needs keys and values in every layer, which this model ({kind}) does not have; take "
            "the adapter prompt or lora."
        ) from e
    if len(shapes) != 1:
        raise InputError(
            f"adapter: prefix tuning needs layers of one shape, and those of this model ({kind}) differ; take the adapter prompt or lora."
        )
    (heads, size) = shapes.pop()
    return len(kept.layers), heads, size
