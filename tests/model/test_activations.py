"""Activation checkpointing: less is kept, and gradients stay the same to the last bit, with dropout too."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model, with_lora
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import collate
from tunesmith.training.objectives import sft

EXAMPLES = random_examples(n=6, low=10, high=40)


def backward(how, adapter, dropout=0.0):
    """Return the gradients of one batch and the bytes that were kept for the backward pass."""
    model = tiny_model("llama", num_hidden_layers=4)
    if adapter == "lora":
        model = with_lora(model, 1, dropout)
    fuse(model)
    policy, _ = make_policy(model)
    checkpoint_activations(model, how)
    policy.train()
    batch = collate(EXAMPLES, np.arange(6))
    kept = {}
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: _note(kept, t), lambda t: t):
        loss = sft.loss(policy(batch), batch.weights)
    loss.backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}, sum(kept.values())


def _note(kept, tensor):
    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


@pytest.mark.parametrize(("adapter", "dropout"), [("full", 0.0), ("lora", 0.0), ("lora", 0.3)])
def test_the_same_gradients_from_less_that_is_kept(adapter, dropout):
    wanted, none = backward("none", adapter, dropout)
    selective, some = backward("selective", adapter, dropout)
    full, little = backward("full", adapter, dropout)
    assert wanted
    assert little < some < none
    for found in (selective, full):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_nothing_is_recomputed_without_gradients():
    model = tiny_model("llama")
    policy, _ = make_policy(model)
    batch = collate(EXAMPLES, np.arange(6))
    with torch.no_grad():
        wanted = policy(batch)
        assert checkpoint_activations(model, "full") == 2
        assert torch.equal(policy(batch), wanted)
