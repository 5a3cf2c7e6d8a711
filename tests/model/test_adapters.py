"""Adapters: what is trained, what a fresh one changes (nothing), and what is refused."""

import pytest
import torch

from builders import tiny_model
from tunesmith.errors import InputError
from tunesmith.model.adapters import full, lora


def test_full_trains_everything():
    model = tiny_model().requires_grad_(False)
    assert all(p.requires_grad for p in full.attach(model).parameters())


def test_a_fresh_lora_changes_nothing_and_trains_only_itself():
    ids = torch.arange(12)[None]
    wanted = tiny_model()(ids).logits
    model = lora.attach(tiny_model(), r=4)
    assert torch.equal(model(ids).logits, wanted)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}
    # two layers x (q, k, v, o, gate, up, down) x (A, B): all linear layers, never the head
    assert len(trained) == 2 * 7 * 2
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, "CAUSAL_LM")


def test_lora_s_arithmetic_by_hand():
    """With A and B set by hand a layer gives x W^T + alpha / r x A^T B^T."""
    model = lora.attach(tiny_model(dtype=torch.float64), r=2, alpha=6, target_modules=["q_proj"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
    x = torch.randn(3, 32, dtype=torch.float64)
    wanted = x @ layer.base_layer.weight.T + 3 * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), wanted, atol=1e-12)


def test_targets_that_match_nothing_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"\['q_prj'\] matches nothing.*down_proj, gate_proj, k_proj"):
        lora.attach(tiny_model(), target_modules=["q_prj"])


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_the_output_layer_is_refused(targets):
    """The policy multiplies by the head's own weight, so an adapter there would be left out silently."""
    with pytest.raises(InputError, match="reaches the output layer"):
        lora.attach(tiny_model(), target_modules=targets)
