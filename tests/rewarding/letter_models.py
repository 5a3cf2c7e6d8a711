"""A policy that draws three letters from odds written down, and a reward model that counts one of them: both transformers folders."""

import math

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from builders import byte_tokenizer, tiny_config

ODDS = {"a": 0.5, "x": 0.25, "<|im_end|>": 0.25}


def _still(model):
    """Make every layer pass its input on, and every token's embedding the same unit vector."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 1] = 1.0


def _config(**changes):
    return tiny_config("llama", vocab_size=260, eos_token_id=256, num_hidden_layers=1, **changes)


def save_policy(folder, odds):
    """Save a causal model that draws each token from `odds`, whatever stands before."""
    tokenizer = byte_tokenizer()
    model = LlamaForCausalLM(_config())
    _still(model)
    with torch.no_grad():
        model.lm_head.weight[:, 1] = -20 / math.sqrt(32)
        for token, p in odds.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 1] = math.log(p) / math.sqrt(32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_reward(folder, letter="x", **changes):
    """Save a reward model whose score rises with the letter's share of a conversation: attention that looks at all alike."""
    tokenizer = byte_tokenizer()
    model = LlamaForSequenceClassification(_config(num_labels=1, pad_token_id=257, **changes))
    _still(model)
    with torch.no_grad():
        token = tokenizer.convert_tokens_to_ids(letter)
        model.model.embed_tokens.weight[token] = torch.eye(32)[0]
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, 0] = attention.o_proj.weight[0, 0] = model.score.weight[0, 0] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
