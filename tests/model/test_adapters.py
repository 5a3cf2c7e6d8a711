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


@pytest.mark.parametrize(("family", "experts", "rank"), [("mixtral", 4, 6), ("qwen3_moe", 6, 6), ("gpt_oss", 4, 3)])
def test_all_linear_reaches_experts_and_the_saved_adapter_is_plain_peft_s(family, experts, rank, tmp_path):
    """Each expert has an A and a B with gradients; after a step the folder gives the same logits in PEFT and merged."""
    from peft import PeftModel

    model = lora.attach(tiny_model(family), r=3)
    assert lora.reach(model) == "LoRA reaches the experts (mlp.experts.down_proj, mlp.experts.gate_up_proj)"
    ids = torch.arange(60).view(2, 30)
    for _ in range(2):  # B is zero at first, so A's gradient comes with the second step
        model.zero_grad()
        model(ids).logits.pow(2).sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad / (1e-6 + p.grad.norm())
    layer = model.get_base_model().model.layers[1].mlp.experts  # PEFT wraps parameter by parameter
    wrapped = {layer.parameter_name: layer, layer.base_layer.parameter_name: layer.base_layer}
    for name, r in (("down_proj", 3), ("gate_up_proj", rank)):  # Mixtral's kind has gate and up of rank r each
        for weight, dimension in (
            (wrapped[name].lora_A["default"].weight, 0),
            (wrapped[name].lora_B["default"].weight, 1),
        ):
            assert weight.shape[dimension] == experts * r
            assert weight.grad.abs().sum(1 - dimension).min() > 0  # every expert of this batch
    with torch.no_grad():
        wanted = model(ids).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path)
        assert torch.equal(loaded(ids).logits, wanted)
        assert (loaded.merge_and_unload()(ids).logits - wanted).abs().max() < 1e-4
        assert (tiny_model(family)(ids).logits - wanted).abs().max() > 1e-3


def test_experts_by_name_alone_or_left_alone():
    model = lora.attach(tiny_model("gpt_oss"), target_modules=[], target_parameters=["mlp.experts.down_proj"])
    assert {n.split("layers.")[1][2:] for n, p in model.named_parameters() if p.requires_grad} == {
        "mlp.experts.lora_A.default.weight",
        "mlp.experts.lora_B.default.weight",
    }
    assert "reaches" in lora.reach(model)
    model = lora.attach(tiny_model("mixtral"), target_modules=["q_proj"], dropout=0.1)
    assert "LoRA leaves the experts as they are" in lora.reach(model)
    assert lora.reach(lora.attach(tiny_model())) is None


def test_parameters_that_match_nothing_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r'ends in "mlp\.down_proj"; its .* are mlp\.experts\.down_proj, mlp'):
        lora.attach(tiny_model("mixtral"), target_parameters=["mlp.experts.down_proj", "mlp.down_proj"])
    with pytest.raises(InputError, match="it has no experts"):
        lora.attach(tiny_model(), target_parameters=["experts"])


def test_dropout_on_experts_is_refused():
    with pytest.raises(
        InputError, match=r"dropout 0\.1: PEFT has no dropout for parameters such as mlp\.experts\.down_proj"
    ):
        lora.attach(tiny_model("mixtral"), dropout=0.1)


def test_targets_that_match_nothing_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"\['q_prj'\] matches nothing.*down_proj, gate_proj, k_proj"):
        lora.attach(tiny_model(), target_modules=["q_prj"])


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_the_output_layer_is_refused(targets):
    """The policy multiplies by the head's own weight, so an adapter there would be left out silently."""
    with pytest.raises(InputError, match="reaches the output layer"):
        lora.attach(tiny_model(), target_modules=targets)
