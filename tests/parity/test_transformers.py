"""The policy's log-probs and gradients equal those of transformers' own padded forward: 1e-5 in fp32, 1e-10 in float64."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model
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
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen3", {}), ("qwen3", {"num_key_value_heads": 4})],
)
@pytest.mark.parametrize("flat", [True, False])
def test_loss_and_gradients_equal_a_padded_forward(family, changes, dtype, flat):
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
    oracle = attach(tiny_model("llama", torch.float64))
    ours = attach(tiny_model("llama", torch.float64))
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


def test_a_model_the_flat_attention_does_not_compute_runs_padded():
    """A window shorter than the probe is refused by the flat attention; the policy says so and runs padded, exactly."""
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=256,
    )
    model = AutoModelForCausalLM.from_config(config)
    policy, sentence = make_policy(model)
    assert not policy.flat
    assert "window" in sentence
    examples = random_examples(n=4)
    batch = collate(examples, np.arange(4))
    loss = sft.loss(policy(batch), batch.weights) / len(batch.weights)
    assert abs(loss.item() - padded_loss(model, examples).item()) <= 1e-5


def test_a_row_longer_than_the_window_runs_padded_and_the_others_flat():
    """The probe is shorter than the window, so the model runs flat; the one batch that would need the window does not."""
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(MistralConfig(**shape, **heads, sliding_window=1100))
    policy, sentence = make_policy(model)
    assert sentence.startswith("flat")
    for low in (1050, 1200):
        examples = random_examples(n=2, low=low, high=low + 1)
        batch = collate(examples, np.arange(2))
        loss = sft.loss(policy(batch), batch.weights) / len(batch.weights)
        with policy.plain_attention():
            assert abs(loss.item() - padded_loss(model, examples).item()) <= 1e-5


@pytest.mark.parametrize("kind", ["dropout", "bias"])
def test_what_the_flat_forward_would_leave_out_runs_padded(kind):
    """Attention dropout is asked in training alone, and a fresh output bias is zero: neither shows in log-probs of eval mode."""
    from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

    torch.manual_seed(0)
    gpt2 = GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    phi = PhiConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    policy, sentence = make_policy(AutoModelForCausalLM.from_config(gpt2 if kind == "dropout" else phi))
    assert not policy.flat
    assert kind in sentence
    policy.train()
    batch = collate(random_examples(n=3), np.arange(3))
    sft.loss(policy(batch), batch.weights).backward()
    assert all(p.grad is not None for p in policy.parameters())
