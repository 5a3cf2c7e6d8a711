"""Fused blocks equal transformers' and PEFT's modules: 1e-5 in fp32, 1e-10 in float64, forward and every gradient."""

from copy import deepcopy

import pytest
import torch
from fusing import ADAPTERS, BOUND, adapted, assert_equal, fused_modules, run
from peft import LoraConfig
from torch import nn

from builders import tiny_model
from tunesmith.model import fused
from tunesmith.model.lora import fuse, parts_of

BIASES = {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    ("dtype", "base", "changes"),
    [
        (torch.float32, False, {}),
        (torch.float64, False, BIASES),
        (torch.float64, True, {}),
        (torch.float32, True, BIASES),
    ],
    ids=["frozen-fp32", "frozen-float64-biases-gelu", "trained-float64", "trained-fp32-biases-gelu"],
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_logits_and_gradients_are_those_of_the_modules(adapter, dtype, base, changes):
    model = adapted("llama", dtype, ADAPTERS[adapter], base, **changes)
    ids = torch.randint(0, 97, (2, 13))
    wanted = run(deepcopy(model), ids)
    fuse(model)
    assert_equal(run(model, ids), wanted, dtype)


@pytest.mark.parametrize("adapter", ["full", "lora", "dora-dropout"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gemma2"])
def test_other_families(family, adapter):
    model = adapted(family, torch.float64, ADAPTERS[adapter])
    ids = torch.randint(0, 97, (2, 13))
    wanted = run(deepcopy(model), ids)
    fuse(model)
    assert_equal(run(model, ids), wanted, torch.float64)


def test_which_modules_are_fused():
    model = adapted("qwen3", torch.float32, {})
    assert fuse(model) == 14
    # two layers: a norm before attention and feed-forward, one each for queries and keys; one at the end
    assert fused_modules(model) == {"_forward": 14, "_attention": 2, "_mlp": 2, "_norm": 9}
    full = tiny_model("llama")
    assert fuse(full) == 0
    assert fused_modules(full) == {"_attention": 2, "_mlp": 2, "_norm": 5}


def test_modules_that_compute_something_else_keep_their_forward():
    gemma = tiny_model("gemma2")  # its norm multiplies by 1 + w
    fuse(gemma)
    assert "_norm" not in fused_modules(gemma)
    assert "_attention" not in fused_modules(gemma)

    class OtherMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
            self.down_proj, self.act_fn = nn.Linear(6, 4), nn.SiLU()

        def forward(self, x):
            return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    assert fused.fuse_blocks(OtherMLP()) == 0


def test_an_attention_that_passes_on_something_else_keeps_its_forward(monkeypatch):
    """Its window would be lost, which no result on a few tokens shows."""
    mistral = tiny_model("mistral")
    fuse(mistral)
    assert fused_modules(mistral)["_attention"] == 2
    monkeypatch.setitem(fused.ATTENTIONS, "MistralAttention", lambda module: None)
    mistral = tiny_model("mistral")
    fuse(mistral)
    assert "_attention" not in fused_modules(mistral)


@pytest.mark.parametrize(("family", "norms"), [("gemma2", 0), ("llama", 5)])
def test_norms_are_told_apart_in_bf16_too(family, norms):
    """One weight of 300 makes a result beside which 1 + w and w would look the same."""
    model = tiny_model(family, torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p[3] = 300
    fuse(model)
    assert fused_modules(model).get("_norm", 0) == norms


def test_modules_of_one_class_with_other_attributes_are_tried_by_themselves():
    class ShiftedRMSNorm(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.weight, self.eps, self.shift = nn.Parameter(torch.ones(8)), 1e-6, shift

        def forward(self, x):
            return (self.weight + self.shift) * x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    for shifts in ((0, 1, 0), (1, 0, 0)):
        assert fused.fuse_blocks(nn.ModuleList(map(ShiftedRMSNorm, shifts))) == 2


@pytest.mark.parametrize(
    "adapter", ["lora", "dora", *(pytest.param(a, marks=pytest.mark.slow) for a in ("dropout", "dora-dropout"))]
)
def test_bf16_is_as_near_to_float64_as_the_modules_are(adapter):
    """Over the mean of some seeds: one model's error is what its rounding happens to be."""

    def error(got, exact):
        return sum(float((got[1][n] - g).norm() / g.norm()) for n, g in exact[1].items())

    ours = theirs = 0.0
    for seed in range(8):
        model = adapted("llama", torch.bfloat16, ADAPTERS[adapter], seed=seed)
        own, other = deepcopy(model), deepcopy(model)
        fuse(other)
        ids = torch.randint(0, 97, (2, 40))
        exact = run(model.double(), ids)
        ours += error(run(other, ids), exact)
        theirs += error(run(own, ids), exact)
    assert ours <= theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_rms_norm(dtype, trained, transposed):
    """Some families norm queries and keys after they transpose heads and tokens."""
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 24, dtype=dtype)
    x = (x.transpose(1, 2) if transposed else x).requires_grad_()
    w = torch.randn(24, dtype=dtype, requires_grad=trained)
    dy = torch.randn_like(x)
    y = fused.rms_norm(x, w, 1e-3)
    wanted = w * x * (x.pow(2).mean(-1, keepdim=True) + 1e-3).rsqrt()
    torch.testing.assert_close(y, wanted, atol=BOUND[dtype], rtol=0)
    inputs = [x, w] if trained else [x]
    for ours, theirs in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        torch.testing.assert_close(ours, theirs, atol=BOUND[dtype], rtol=0)


def test_an_adapter_switched_off_or_merged_is_left_out():
    model = adapted("llama", torch.float64, {})
    plain = deepcopy(model)
    fuse(model)
    ids = torch.arange(9)[None]
    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-12, rtol=0)
    wanted = plain(ids).logits
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-10, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-10, rtol=0)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-10, rtol=0)


SECOND = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def _two(dtype, first, second, active):
    """A model with two adapters at values that matter, `active` ones switched on; all of the first and the active are trained."""
    model = adapted("llama", dtype, first)
    model.add_adapter("other", LoraConfig(**SECOND, **second))
    model.base_model.set_adapter(active)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".other." in name and "magnitude" not in name:
                p.normal_(0, 0.1)
    return model.to(dtype).train()


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("first", "second", "grouped"),
    [
        ({}, {}, True),
        ({"use_rslora": True}, {"lora_bias": True}, True),
        ({}, {"lora_dropout": 0.3}, False),
        ({"use_dora": True}, {}, False),
        ({"use_dora": True}, {"use_dora": True}, False),
    ],
    ids=["plain", "bias", "dropout", "dora", "two-dora"],
)
def test_two_active_adapters(first, second, grouped, dtype):
    for active in (["default", "other"], ["other", "default"], ["other"], ["default"]):
        model = _two(dtype, first, second, active)
        ids = torch.randint(0, 97, (2, 13))
        wanted = run(deepcopy(model), ids)
        fuse(model)
        assert_equal(run(model, ids), wanted, dtype)
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        assert (parts_of(layer) is not None) == (grouped or len(active) == 1)


def test_of_two_adapters_a_frozen_one_gets_no_gradient():
    model = _two(torch.float64, {}, {}, ["default", "other"])
    for name, p in model.named_parameters():
        p.requires_grad_(".default." in name)
    wanted = run(deepcopy(model), torch.arange(9)[None])
    fuse(model)
    assert_equal(run(model, torch.arange(9)[None]), wanted, torch.float64)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_autocast_is_left_to_the_modules(adapter):
    model = adapted("llama", torch.float32, ADAPTERS[adapter])
    plain = deepcopy(model)
    fuse(model)
    ids = torch.arange(9)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(run(model, ids), run(plain, ids), torch.float32)


def test_a_second_derivative_is_refused():
    """What is kept between the passes has no history: it would come out wrong without a word."""
    x = torch.randn(2, 5, requires_grad=True)
    (first,) = torch.autograd.grad(fused.rms_norm(x, torch.ones(5), 1e-5).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        first.sum().backward()


def test_generation_with_a_cache_is_unchanged():
    model = adapted("llama", torch.float64, {})
    plain = deepcopy(model)
    fuse(model)
    ids = torch.arange(5)[None]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))


def test_recomputed_layers_have_the_same_gradients():
    from tunesmith.model.activations import checkpoint_activations

    ids = torch.randint(0, 97, (2, 13))
    kept = adapted("llama", torch.float64, {})
    fuse(kept)
    for how in ("full", "selective"):
        again = adapted("llama", torch.float64, {})
        fuse(again)
        assert checkpoint_activations(again, how) == 2
        assert_equal(run(again.train(), ids), run(deepcopy(kept).train(), ids), torch.float64)
