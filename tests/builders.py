"""Tiny random models and examples drawn from a seed. (Not in conftest.py: pytest knows several modules of that name.)"""

import numpy as np
import torch

from tunesmith.data.records import Examples, Origin


def tiny_config(family: str, **changes):
    """Return a two-layer transformers config of a family."""
    from transformers import LlamaConfig, Qwen3Config

    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if family == "qwen3":
        return Qwen3Config(**{**common, "head_dim": 8, **changes})
    return LlamaConfig(**{**common, **changes})


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """Return a tiny random causal LM with weights large enough that its log-probs differ from uniform."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5)
    return model


def random_examples(
    n: int = 8, low: int = 3, high: int = 30, vocabulary: int = 97, scored: float = 0.5, seed: int = 0
) -> Examples:
    """Return n random examples, about `scored` of their tokens scored, the first of each never, the last always."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = rng.random(offsets[-1]) < scored
    mask[offsets[1:] - 1] = True
    mask[offsets[:-1]] = False
    ids = rng.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    return Examples(ids, mask, offsets, np.arange(n), [Origin("random", i + 1) for i in range(n)])


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str = CHATML):
    """Return a tokenizer of one token per byte and four special ones (260 in all): no merges, so any word is several tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True) for t in ("<eos>", "<pad>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = template
    return tokenizer
