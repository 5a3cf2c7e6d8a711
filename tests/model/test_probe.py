"""A model that sees what it should predict is refused."""

import pytest
import torch

from builders import tiny_model
from tunesmith.errors import InputError
from tunesmith.model import probe
from tunesmith.model.policy import Policy, make_policy


def test_a_model_that_fails_under_eager_attention_has_its_own_back(monkeypatch):
    whole = Policy(tiny_model("llama").eval(), flat=False, trunk=False)
    own = whole.transformer.config._attn_implementation

    def alone(*_):
        assert whole.transformer.config._attn_implementation == "eager"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(probe, "_alone", alone)
    with pytest.raises(RuntimeError, match="out of memory"):
        probe._rounding(whole, probe.flat_batch(torch.arange(9), (9,), (-1,)), torch.zeros(8), own)
    assert whole.transformer.config._attn_implementation == own != "eager"


def test_a_model_of_berts_kind_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 97,
    }
    with pytest.raises(InputError, match=r"BertLMHeadModel\) looks at words before it predicts them"):
        make_policy(BertLMHeadModel(BertConfig(**sizes)))
