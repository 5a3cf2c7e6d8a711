"""The policy's log-probs and gradients equal those of transformers' own padded forward: 1e-5 in fp32, 1e-10 in float64."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model
from tunesmith.model import attention
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training.batch import collate
from tunesmith.training.objectives import sft

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}


def padded_loss(model, examples):
    """The mean -log p over scored tokens by transformers on a right-padded batch with labels: the oracle."""
    longest = int(examples.lengths.max())
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i, (start, stop) in enumerate(zip(examples.offsets[:-1], examples.offsets[1:], strict=True)):
        n = stop - start
        row = torch.from_numpy(examples.ids[start:stop].astype(np.int64))
        ids[i, :n], mask[i, :n] = row, 1
        labels[i, :n] = torch.where(torch.from_numpy(examples.scored[start:stop]), row, -100)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100
    )


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"num_key_value_heads": 4}),
        ("mistral", {}),
        ("phi3", {}),
        ("gpt_neox", {}),
        ("opt", {"dropout": 0.0}),
        ("gpt2", {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
        ("phi", {}),
        ("granite", {}),
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_loss_and_gradients_equal_a_padded_forward(family, changes, dtype, flat):
    """In float64 too, for families whose code does not round to fp32 inside (test_families.py has all of them, in fp32)."""
    examples = random_examples(n=9)
    oracle = tiny_model(family, dtype, attn_implementation="sdpa", **changes)
    wanted = padded_loss(oracle, examples)
    wanted.backward()

    policy, sentence = make_policy(tiny_model(family, dtype, **changes))
    assert sentence.startswith("flat")
    if not flat:
        policy.transformer.set_attn_implementation("sdpa")
        policy = Policy(policy.model, flat=False)
    batch = collate(examples, np.arange(len(examples)))
    loss = sft.loss(policy(batch), batch.weights) / len(batch.weights)
    loss.backward()

    assert abs(loss.item() - wanted.item()) <= BOUND[dtype]
    ours, theirs = gradients(policy.model), gradients(oracle)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= BOUND[dtype] * max(1, gradient.abs().max().item()), name


def test_frozen_head_and_lora_gradients_equal_plain_peft():
    """LoRA through the fused layers and the frozen head gives plain PEFT's gradients on the same rows."""
    from tunesmith.model.adapters.lora import attach
    from tunesmith.model.lora import fuse

    examples = random_examples(n=7, seed=3)
    torch.manual_seed(1)
    oracle = attach(tiny_model("llama", torch.float64)).model
    ours = attach(tiny_model("llama", torch.float64)).model
    with torch.no_grad():
        for (name, a), b in zip(oracle.named_parameters(), ours.parameters(), strict=True):
            if "lora_" in name:
                a.copy_(torch.randn_like(a) * 0.1)
            b.copy_(a)
    padded_loss(oracle, examples).backward()
    assert fuse(ours) == 14
    policy, _ = make_policy(ours)
    batch = collate(examples, np.arange(len(examples)))
    (sft.loss(policy(batch), batch.weights) / len(batch.weights)).backward()
    theirs = gradients(oracle)
    assert len(theirs) == 28
    for name, gradient in gradients(ours).items():
        assert (gradient - theirs[name]).abs().max() <= 1e-10, name


def test_a_model_without_transformers_attention_interface_runs_padded():
    policy, sentence = make_policy(tiny_model("bloom"))
    assert not policy.flat
    assert sentence.endswith("(it does not use transformers' attention interface)")


def test_what_training_alone_asks_for_is_refused_at_once(monkeypatch):
    """Attention dropout does not show in eval mode: were there none, GPT-2 would have to run padded from the start."""

    def no_dropout(*inputs, dropout=0.0, **keywords):
        if dropout:
            raise ValueError("there is no dropout")
        return flat_attention(*inputs, **keywords)

    flat_attention = attention.flat_attention
    monkeypatch.setattr(attention, "flat_attention", no_dropout)
    policy, sentence = make_policy(tiny_model("gpt2").train())
    assert not policy.flat
    assert "there is no dropout" in sentence
    assert policy.model.training
    policy.train()
    batch = collate(random_examples(n=3), np.arange(3))
    sft.loss(policy(batch), batch.weights).backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_the_probe_leaves_no_trace():
    """Modes, random state, attention (of one that runs padded) and windows are as they were."""
    for family, flat in (("gpt_oss", True), ("bloom", False)):
        model = tiny_model(family).train()
        own, state = model.config._attn_implementation, torch.random.get_rng_state()
        policy, _ = make_policy(model)
        assert policy.flat == flat
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(m.training for m in model.modules())
        assert model.config._attn_implementation == ("flat" if flat else own)
        assert policy.own == own
        with policy.plain_attention():
            assert model.config._attn_implementation == own


def test_lora_on_experts_flat_equals_plain_peft():
    from tunesmith.model.adapters.lora import attach

    examples = random_examples(n=6, seed=2)

    def adapted():
        torch.manual_seed(1)
        model = attach(tiny_model("qwen3_moe"), r=2).model
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        return model

    oracle, ours = adapted(), adapted()
    padded_loss(oracle, examples).backward()
    policy, sentence = make_policy(ours)
    assert policy.flat, sentence
    batch = collate(examples, np.arange(len(examples)))
    (sft.loss(policy(batch), batch.weights) / len(batch.weights)).backward()
    theirs = gradients(oracle)
    assert any(".experts." in name for name in theirs)
    for name, gradient in gradients(ours).items():
        assert (gradient - theirs[name]).abs().max() <= 1e-5 * max(1, theirs[name].abs().max().item()), name
