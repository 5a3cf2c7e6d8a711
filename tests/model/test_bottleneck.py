"""Bottleneck adapters: where they stand, what they compute, that they start as nothing, and their files."""

import json

import pytest
import torch

from builders import FAMILIES, tiny_config, tiny_model
from tunesmith.errors import InputError
from tunesmith.model import adapter_files, bottleneck, probe
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.adapters.bottleneck import attach
from tunesmith.model.lora import fuse
from tunesmith.model.policy import Policy, make_policy

IDS = torch.arange(24).view(2, 12)


def randomised(model, std: float = 0.3):
    torch.manual_seed(1)
    for p in model.adapters().values():
        torch.nn.init.normal_(p, std=std)
    return model


def f64(family: str = "llama", **changes):
    return tiny_model(family, dtype=torch.float64, **changes)


def gradients(model, policy):
    batch = probe.flat_batch(IDS.flatten(), (14, 10), (-1, -1))
    logps = policy(batch)
    (logps * torch.linspace(0.5, 2, len(logps))).sum().backward()
    return logps.detach(), {n.replace("block.", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fresh_ones_change_nothing_and_switched_off_ones_neither(family):
    placement = "pfeiffer" if family in ("llama", "bloom") else "houlsby"
    base = tiny_model(family).eval()
    wanted = base(IDS).logits
    model = attach(base, placement=placement, size=4).model.eval()
    assert torch.equal(model(IDS).logits, wanted)
    randomised(model)
    assert (model(IDS).logits - wanted).abs().max() > 0.01
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, wanted)
    assert not torch.equal(model(IDS).logits, wanted)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.adapters())
    # two layers x adapters x (D, d, U, u)
    assert len(trained) == 2 * (2 if placement == "houlsby" else 1) * 4


@pytest.mark.parametrize(
    ("family", "places"),
    [
        ("llama", ["self_attn", "mlp"]),
        ("gemma2", ["post_attention_layernorm", "post_feedforward_layernorm"]),
        ("gpt2", ["attn", "mlp"]),
        ("opt", ["self_attn", "fc2"]),
        ("mixtral", ["self_attn", "mlp"]),
        ("bloom", ["self_attention.dense", "mlp.dense_4h_to_h"]),
    ],
)
def test_places(family, places):
    """The last module before the residual sum: a norm behind the sub-layer where there is one, inside it where it sums itself."""
    layer = bottleneck.decoder_layers(tiny_model(family))[0]
    assert bottleneck._places(layer, "houlsby") == places
    assert bottleneck._places(layer, "pfeiffer") == places[1:]


def by_hand(model, x, positions):
    """A Llama written out: x + A(attention(norm x)), then + A(mlp(norm x)), with the adapter A(h) = h + U f(D h + d) + u."""

    def adapted(h, adapter):
        low = torch.relu(h @ adapter.down.weight.T + adapter.down.bias)
        return h + low @ adapter.up.weight.T + adapter.up.bias

    trunk = model.get_base_model().model
    x = trunk.embed_tokens(x)
    turns = trunk.rotary_emb(x, positions)
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    for layer in trunk.layers:
        wrapped = layer.self_attn
        h = wrapped.block(layer.input_layernorm(x), position_embeddings=turns, attention_mask=mask)[0]
        x = x + adapted(h, wrapped.adapter)
        h = layer.mlp.block(layer.post_attention_layernorm(x))
        x = x + adapted(h, layer.mlp.adapter)
    return model.get_base_model().lm_head(trunk.norm(x))


def test_equal_to_the_formula_written_out():
    """Logits and gradients of a two-layer Llama, Houlsby placement, ReLU: 1e-12 in float64."""
    model = randomised(attach(f64(), size=5, activation="relu").model)
    ids = IDS[:1]
    wanted = by_hand(model, ids, torch.arange(12)[None])
    wanted.square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.adapters().items()}
    model.zero_grad()
    found = model(ids).logits
    found.square().sum().backward()
    assert (found - wanted).abs().max() < 1e-12
    for name, p in model.adapters().items():
        assert (p.grad - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max(), name


@pytest.mark.parametrize(
    ("family", "how"),
    [("llama", "none"), ("llama", "selective"), ("gemma3", "full"), ("gpt2", "full"), ("opt", "selective")],
)
def test_flat_fused_and_recomputed_as_the_model_itself(family, how):
    """In flat batches, with fused layers and recomputed activations: log-probs and every gradient of transformers' own forward."""
    plain = randomised(attach(f64(family), size=4).model).eval()  # GPT-2 and OPT have dropout of their own
    wanted, expected = gradients(plain, Policy(plain, flat=False, trunk=False))
    model = randomised(attach(f64(family), size=4).model).eval()
    fuse(model)
    policy, _ = make_policy(model)
    assert policy.flat
    checkpoint_activations(model, how)
    found, grads = gradients(model, policy)
    assert (found - wanted).abs().max() < 1e-10
    assert grads.keys() == expected.keys()
    assert all((grads[n] - expected[n]).abs().max() <= 1e-9 * (1 + expected[n].abs().max()) for n in grads)


def test_mixtures_run_flat_too():
    model = randomised(attach(tiny_model("mixtral"), size=4).model)
    policy, said = make_policy(model)
    assert policy.flat, said
    logps, grads = gradients(model, policy)
    assert logps.isfinite().all()
    assert all(g.abs().max() > 0 for g in grads.values())


def test_generation_with_a_cache_equals_the_forward():
    model = randomised(attach(f64(), size=4).model.eval())
    ids = IDS[:1, :6]
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    for n in range(6, 12):
        assert model(out[:, :n]).logits[0, -1].argmax() == out[0, n]


def test_dropout_is_for_training_alone_and_leaves_the_residual():
    model = randomised(attach(f64(), size=4, dropout=0.5).model)
    adapter = model.get_base_model().model.layers[0].mlp.adapter
    x = torch.randn(400, 32, dtype=torch.float64)
    added = adapter.eval()(x) - x
    dropped = adapter.train()(x) - x
    ratio = dropped / added
    assert ((ratio.abs() < 1e-6) | ((ratio - 2).abs() < 1e-6)).all()  # left out, or scaled by 1 / (1 - 0.5)
    assert 0.45 < (ratio.abs() < 1e-6).double().mean() < 0.55


def test_files(tmp_path):
    model = randomised(attach(tiny_model(), placement="pfeiffer", size=3, activation="silu", dropout=0.1).model)
    wanted = model.eval()(IDS).logits
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["placement"], config["size"]) == ("BOTTLENECK", "pfeiffer", 3)
    loaded = adapter_files.load(tiny_model(), str(tmp_path))
    assert torch.equal(loaded.eval()(IDS).logits, wanted)
    assert not any(p.requires_grad for p in loaded.parameters())
    again = adapter_files.load(tiny_model(), str(tmp_path), trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == set(again.adapters())
    assert again.get_base_model().model.layers[0].mlp.adapter.dropout == 0.1


def test_it_cannot_be_merged():
    with pytest.raises(InputError, match="has an activation in its middle, so it cannot be merged"):
        attach(tiny_model()).model.merge_and_unload()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 4, "reduction_factor": 8}, "both say how wide the middle is; keep one"),
        ({"size": 33}, "adapter.size 33 is beyond the model's width of 32"),
    ],
)
def test_widths_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        attach(tiny_model(), **options)


def test_the_middle_is_the_width_by_the_reduction_factor_and_never_nothing():
    for factor, size in ((None, 2), (4, 8), (100, 1)):
        options = {} if factor is None else {"reduction_factor": factor}
        assert attach(tiny_model(), **options).model.peft_config["default"].size == size


def test_a_family_without_such_blocks_is_refused_with_what_its_layers_have():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=1, vocab_size=97, state_size=4)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"\(MambaBlock\) have no feed-forward block .*they have norm, mixer"):
        attach(model)


def test_on_meta_as_on_the_real_model():
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = attach(AutoModelForCausalLM.from_config(tiny_config("llama"))).model
    assert all(p.is_meta for p in model.parameters())
    assert {n: p.shape for n, p in model.adapters().items()} == {
        n: p.shape for n, p in attach(tiny_model()).model.adapters().items()
    }
