"""Tiny random models and examples drawn from a seed. (Not in conftest.py: pytest knows several modules of that name.)"""

import numpy as np
import torch

from tunesmith.data.records import Examples, Origin

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ALTERNATING = ["sliding_attention", "full_attention"]
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.1, 1.6, 4.0, 40.0]}

# What is particular to each family, as in a real config of it (named where ../shared/configs has one), but for its sizes.
FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama3": {  # Llama-3.1-8B-Instruct
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},  # qwen2.5_0.5b
    "qwen3": {"model_type": "qwen3", "head_dim": 8},  # Qwen3-8B
    "mistral": {
        "model_type": "mistral",
        "rms_norm_eps": 1e-5,
        "sliding_window": 8,
    },  # v0.1 had a window; mistral_7b_instruct
    "gemma2": {  # gemma_2_9b
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ALTERNATING,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {  # gemma3_text
        "model_type": "gemma3_text",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ALTERNATING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000},
        },
    },
    "phi3": {  # phi3
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 128,
        "rope_parameters": {**LONGROPE, "rope_theta": 10000.0},
    },
    "gpt2": {"model_type": "gpt2", "n_inner": 48, "bos_token_id": 0, "eos_token_id": 0},
    "gpt_neox": {"model_type": "gpt_neox"},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 1},
    "falcon": {"model_type": "falcon", "bos_token_id": 0, "eos_token_id": 0},
    "falcon_new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "eos_token_id": 0},
    "falcon_alibi": {
        "model_type": "falcon",
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        "eos_token_id": 0,
    },
    "gpt_oss": {  # gpt_oss_20b
        "model_type": "gpt_oss",
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ALTERNATING,
        "rope_parameters": {**YARN, "rope_theta": 150000.0, "original_max_position_embeddings": 8},
    },
    "mixtral": {  # mixtral
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02,
    },
    "qwen3_moe": {  # qwen3_30b
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    "stablelm": {"model_type": "stablelm", "num_key_value_heads": 4},  # stablelm_3b
    "cohere": {"model_type": "cohere", "logit_scale": 0.0625},
    "granite": {
        "model_type": "granite",
        "logits_scaling": 8.0,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.22,
    },
    "phi": {"model_type": "phi", "num_key_value_heads": 4},
    "bloom": {"model_type": "bloom", "eos_token_id": 0},
}


def tiny_config(family: str, **changes):
    """Return a two-layer transformers config of a family."""
    from transformers import AutoConfig

    settings = {**COMMON, **FAMILIES[family], **changes}
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """Return a tiny random causal LM with weights large enough that its log-probs differ from uniform, and biases that are not zero."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).to(dtype)
    if family == "gemma2":
        model.set_attn_implementation("eager")  # transformers 5.17 would take SDPA, which leaves soft-caps out
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(5)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def tiny_scorer(
    family: str = "llama", attributes: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0, **changes
):
    """Return a tiny random reward model (sequence classification), its weights as tiny_model's."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    config = tiny_config(family, **changes)
    config.num_labels = attributes
    model = AutoModelForSequenceClassification.from_config(config).to(dtype)
    if family == "gemma2":
        model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(5)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def with_lora(model, seed: int = 0, dropout: float = 0.0):
    """Return the model with LoRA of rank 4 whose B is random too (it starts at zero, which would hide A's gradients)."""
    from tunesmith.model.adapters import lora

    torch.manual_seed(seed)
    model = lora.attach(model, r=4, dropout=dropout).model
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
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


def random_answers(
    n: int = 8, answers: int = 2, seed: int = 0, scores: bool = False, vocabulary: int = 97, prompt: int = 49
) -> Examples:
    """Return n rows of that many answers to a prompt each, the best first, all their tokens scored; scores: with falling ones.

    Prompts have 1 to `prompt` tokens, answers 1 to 13.
    """
    rng = np.random.default_rng(seed)
    ids, lengths, own = [], [], []
    for _ in range(n):
        asked = rng.integers(0, vocabulary, rng.integers(1, prompt + 1))
        for length in rng.integers(1, 14, answers):
            ids += [asked, rng.integers(0, vocabulary, length)]
            lengths.append(len(asked) + length)
            own.append(length)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    falling = np.sort(rng.random((n, answers)))[:, ::-1].flatten()
    return Examples(
        ids=np.concatenate(ids).astype(np.int32),
        scored=within >= np.repeat(np.subtract(lengths, own), lengths),
        offsets=offsets,
        record=np.repeat(np.arange(n), answers),
        origins=[Origin("random", i + 1) for i in range(n)],
        answer=np.tile(np.arange(answers, dtype=np.int32), n),
        groups=np.arange(0, n * answers + 1, answers),
        values=(falling if scores else np.full(n * answers, np.nan)).astype(np.float32),
    )


def random_verdicts(n: int = 8, seed: int = 0, mismatched: bool = True) -> Examples:
    """Return n rows of an answer each, three in a row good and one bad; mismatched: with another answer behind it."""
    examples = random_answers(n, answers=1 + mismatched, seed=seed)
    assert examples.values is not None
    examples.values[:: 1 + mismatched] = np.arange(n) % 4 > 0
    return examples


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


GEMMA_LIKE = (  # written here after the known behaviour: bos as text, alternation enforced, system merged, content trimmed
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
