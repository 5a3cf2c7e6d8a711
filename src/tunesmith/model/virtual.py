"""The virtual tokens of prompt-learning adapters, as PEFT's modules hold them: embeddings, or keys and values of every layer."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tunesmith.errors import InputError

KNOWN = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


class Virtual:
    """The virtual tokens of a PeftModel's active adapter, `tokens` of them, which PEFT puts before every sequence.

    keyed: they are keys and values of every layer (prefix tuning), which no layer computes; otherwise they are embeddings, which
    stand before those of a sequence (prompt tuning, P-tuning). Either way real tokens have the positions from `tokens` on.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.active_peft_config
        self.tokens = int(self.config.num_virtual_tokens)
        self.keyed = self.config.peft_type == "PREFIX_TUNING"

    def _encoded(self) -> Tensor:
        """Return what PEFT's encoder says of each virtual token, (V,...), with its graph."""
        encoder = self.model.prompt_encoder[self.model.active_adapter]
        weight: Tensor = encoder.embedding.weight
        if self.config.inference_mode:  # the file holds what the encoder said
            return weight
        return encoder(torch.arange(self.tokens, device=weight.device)[None])[0]  # type: ignore[no-any-return]

    def embedded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of tokens `ids` (...,H), and those of the virtual tokens (V,H) in their dtype."""
        real: Tensor = self.model.word_embeddings(ids)
        return real, self._encoded().to(real.dtype)

    def pairs(self) -> Tensor:
        """Return every layer's keys and values, (layers,2,K,V,D), in the model's dtype."""
        c = self.config
        shape = (self.tokens, c.num_layers, 2, c.num_attention_heads, c.token_dim // c.num_attention_heads)
        dtype = self.model.get_base_model().dtype
        return self._encoded().to(dtype).view(shape).permute(1, 2, 3, 0, 4)

    def cache(self, rows: int) -> Cache:
        """Return a cache that holds the virtual tokens' keys and values for `rows` sequences and keeps no others."""
        pairs = self.pairs()[:, :, None].expand(-1, -1, rows, -1, -1, -1)
        return Cache(layers=[_Constant(*pair) for pair in pairs])

    def prompts(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Return what transformers' generate takes for left-padded prompts ids, mask (B,L), of V columns more; the first are padding.

        Virtual embeddings stand behind a row's padding, right before its text. Keys and values stand before it, where positions are
        exact and distances in the cache are not: rows that reach beyond an attention window must have no padding.
        """
        ids = torch.cat([ids[:, :1].expand(-1, self.tokens), ids], 1)
        whole = torch.cat([mask.new_ones(len(mask), self.tokens), mask], 1)
        if self.keyed:
            pairs = self.pairs()[:, :, None].expand(-1, -1, len(ids), -1, -1, -1)
            return {
                "input_ids": ids,
                "attention_mask": whole,
                "past_key_values": DynamicCache([tuple(p) for p in pairs]),
            }
        pads = (1 - mask).sum(1, keepdim=True)
        whole = (torch.arange(ids.shape[1], device=ids.device)[None] >= pads).long()
        embeddings, virtual = self.embedded(ids)
        places = (pads + torch.arange(self.tokens, device=ids.device))[..., None].expand(-1, -1, embeddings.shape[2])
        embeddings = embeddings.scatter(1, places, virtual.expand(len(ids), -1, -1))
        return {"input_ids": ids, "attention_mask": whole, "inputs_embeds": embeddings}


class _Constant(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (B,K,V,D), in front of those a call brings, which are not kept: a layer may be computed twice."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def of(model: Any) -> Virtual | None:
    """Return the virtual tokens that stand before every sequence of the model as it is; None where there are none.

    InputError for an adapter of PEFT's whose virtual tokens are of another kind.
    """
    if not count(model) or model._adapters_disabled:
        return None
    if model.active_peft_config.peft_type not in KNOWN:
        kind = model.active_peft_config.peft_type.value
        raise InputError(
            f"the adapter is of PEFT's kind {kind}, which tunesmith does not run; it runs {', '.join(KNOWN)}."
        )
    return Virtual(model)


def count(model: Any) -> int:
    """Return how many virtual tokens a model's active adapter has: so many positions less are left for text."""
    if not hasattr(model, "prompt_encoder"):  # which PEFT gives to models with such an adapter
        return 0
    config = model.active_peft_config
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0
