"""A tokenizer of bytes with a ChatML template that writes tool calls, and a tiny random model that fits it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import builders

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer():
    return builders.byte_tokenizer(TEMPLATE)


@pytest.fixture(scope="session")
def byte_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, byte_model, byte_tokenizer):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    byte_model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder
