"""Regional compilation changes no result; what it needs is asked for before anything else."""

import shutil

import numpy as np
import pytest

from builders import random_examples, tiny_model, with_lora
from tunesmith.errors import InputError
from tunesmith.model import attention, regional
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import microbatches
from tunesmith.training.objectives import sft

EXAMPLES = random_examples(n=12, low=5, high=40)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "full"])
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_layers_give_the_same_loss_and_gradients(how):
    from tunesmith.model.activations import checkpoint_activations

    def run(compiled):
        model = with_lora(tiny_model("llama"))
        fuse(model)
        policy, _ = make_policy(model)
        checkpoint_activations(model, how)
        if compiled:
            assert regional.compile_layers(policy) == 2
        policy.train()
        losses = []
        for rows in (np.arange(6), np.arange(6, 12)):
            for batch in microbatches(EXAMPLES, rows, 100, policy.flat, policy.multiple):
                assert len(batch.ids) % policy.multiple == 0
                loss = sft.loss(policy(batch), batch.weights)
                loss.backward()
                losses.append(loss.item())
        return losses, {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}

    wanted, gradients = run(False)
    found, compiled = run(True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert compiled.keys() == gradients.keys()
    for name, g in gradients.items():
        assert (compiled[name] - g).abs().max() <= 1e-5 * max(1.0, g.abs().max().item()), name


def test_a_later_model_does_not_let_compiled_code_look_into_attention(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setattr(attention, "_opaque", False)
    policy, _ = make_policy(tiny_model("llama"))
    assert ALL_ATTENTION_FUNCTIONS["flat"] is attention.flat_attention
    regional.compile_layers(policy)  # nothing is compiled before it runs
    compiled = ALL_ATTENTION_FUNCTIONS["flat"]
    try:
        assert make_policy(tiny_model("qwen2"))[0].flat
        assert ALL_ATTENTION_FUNCTIONS["flat"] is compiled is not attention.flat_attention
    finally:
        monkeypatch.undo()
        attention.register()


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"train\.compile needs a C\+\+ compiler"):
        regional.check_compiler("cpu")
