"""A model that sees what it should predict is refused."""

import pytest
import torch

from tunesmith.errors import InputError
from tunesmith.model.policy import make_policy


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
