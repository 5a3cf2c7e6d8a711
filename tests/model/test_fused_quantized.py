"""Fused layers on quantised bases equal PEFT's own on the same base, and hold no weight in full between forward and backward."""

from copy import deepcopy

import pytest
import torch
from fusing import assert_equal, fused_modules, run
from peft import LoraConfig, get_peft_model

from builders import tiny_model
from tunesmith.model.lora import fuse
from tunesmith.model.quantize import Quantization
from tunesmith.model.quantized_layers import quantize_model

KINDS = [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True), ("torchao-int8", True)]
WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 128,
}  # of other rows bitsandbytes 0.50, which PEFT's DoRA reads, is wrong on a CPU
ADAPTERS = {
    "lora": {},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "dora-dropout": {"use_dora": True, "lora_dropout": 0.3},
}


def quantised(kind, adapter, dtype=torch.float32, **config):
    name, double = kind
    pytest.importorskip("torchao" if name.startswith("torchao") else "bitsandbytes")
    model = tiny_model("llama", dtype, **{"mlp_bias": True, **WIDTHS, **config}).requires_grad_(False)
    quantize_model(model, Quantization(name, double))
    settings = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **adapter}
    model = get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.5 if parameter.dim() == 1 else 0, 0.1)
    return model.train()


CASES = (
    [(KINDS[0], name) for name in ADAPTERS]
    + [(kind, "lora") for kind in KINDS[1:]]
    + [(kind, "dora") for kind in KINDS[3:]]
)


@pytest.mark.filterwarnings("ignore")  # PEFT's and torchao's own
@pytest.mark.parametrize(("kind", "adapter"), CASES, ids=lambda x: x if isinstance(x, str) else f"{x[0]}-{x[1]}")
def test_logits_and_gradients_are_those_of_peft(kind, adapter):
    model = quantised(kind, ADAPTERS[adapter])
    plain = deepcopy(model) if kind[0] != "int8" else quantised(kind, ADAPTERS[adapter])
    ids = torch.randint(0, 97, (2, 13))
    wanted = run(plain, ids)
    fuse(model)
    assert fused_modules(model)["_mlp"] == fused_modules(model)["_attention"] == 2
    assert_equal(run(model, ids), wanted, torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[3:4], ids=["nf4", "int8"])
def test_layers_without_an_adapter_join_their_group(kind):
    some = {"target_modules": ["v_proj", "gate_proj"]}
    model, plain = quantised(kind, some), quantised(kind, some)
    ids = torch.randint(0, 97, (2, 13))
    wanted = run(plain, ids)
    fuse(model)
    assert_equal(run(model, ids), wanted, torch.float32)


def test_no_full_weight_is_kept_for_the_backward_pass():
    model = quantised(KINDS[0], {"use_dora": True}, torch.bfloat16, hidden_size=64, intermediate_size=160)
    fuse(model)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        model(input_ids=torch.arange(11)[None], use_cache=False)
    full = {(layer.out_features, layer.in_features) for layer in model.modules() if hasattr(layer, "base_layer")}
    assert kept
    assert not full & set(kept)
