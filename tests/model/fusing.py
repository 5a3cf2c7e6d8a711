"""What the tests of fused layers share: models with adapters at values that matter, their gradients, and how these compare."""

import torch
from peft import LoraConfig, get_peft_model

from builders import tiny_model

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
ADAPTERS = {
    "full": None,
    "lora": {},
    "some": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "ranks": {"rank_pattern": {"q_proj": 5, "up_proj": 2}, "alpha_pattern": {"k_proj": 9, "gate_proj": 1}},
    "rslora": {"use_rslora": True},
    "b-bias": {
        "lora_bias": True,
        "lora_alpha": 2,
    },  # at alpha 6 attention saturates, and PEFT itself is 1.6e-5 from float64
    "dropout": {"lora_dropout": 0.3},
    "dora": {"use_dora": True},
    "dora-dropout": {"use_dora": True, "lora_dropout": 0.3},
    "dora-some": {"use_dora": True, "target_modules": ["k_proj", "gate_proj"]},
}


def adapted(family, dtype, adapter, base=False, **changes):
    """A tiny model in training mode with every kind of trained weight at values that matter; base: its own weights are trained too.

    adapter: keyword arguments of PEFT's LoraConfig; None: full fine-tuning.
    """
    model = tiny_model(family, dtype, **changes)
    if adapter is not None:
        config = LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **adapter})
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:
                p.mul_(torch.empty_like(p).uniform_(0.5, 2))
            elif "lora_" in name or p.dim() == 1:
                p.normal_(0, 0.1)
            p.requires_grad_(p.requires_grad or base)
    return model.train()


def run(model, ids):
    """The logits, and the gradients by name of a sum that weighs every logit differently; the same random numbers each time."""
    torch.manual_seed(2)
    logits = model(input_ids=ids, use_cache=False).logits
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, wanted, dtype):
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=BOUND[dtype] * gradient.abs().max(), rtol=0, msg=name)
    assert ours[1].keys() == wanted[1].keys()
    torch.testing.assert_close(ours[0], wanted[0], atol=BOUND[dtype] * wanted[0].abs().max(), rtol=0)


def fused_modules(model):
    """How often each fused forward is set."""
    names = [getattr(getattr(m.__dict__.get("forward"), "func", None), "__name__", None) for m in model.modules()]
    return {name: names.count(name) for name in set(names) - {None}}
