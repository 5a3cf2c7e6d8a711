"""Activation checkpointing: less is kept, and gradients stay the same to the last bit, with dropout too."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model, with_lora
from tunesmith.model.activations import checkpoint_activations, decoder_layers
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import collate
from tunesmith.training.objectives import sft

EXAMPLES = random_examples(n=6, low=10, high=40)


def backward(how, adapter, dropout=0.0, family="llama"):
    """Return the gradients of one batch and the bytes that were kept for the backward pass."""
    types = {"layer_types": ["sliding_attention", "full_attention"] * 2} if family == "gemma2" else {}
    model = tiny_model(family, num_hidden_layers=4, **types)
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
        auxiliary = policy.take_auxiliary()
        loss = loss if auxiliary is None else loss + auxiliary
    loss.backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}, sum(kept.values())


def _note(kept, tensor):
    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


@pytest.mark.parametrize(
    ("family", "adapter", "dropout"),
    [
        ("llama", "full", 0.0),
        ("llama", "lora", 0.0),
        ("llama", "lora", 0.3),
        ("gemma2", "lora", 0.0),
        ("mixtral", "full", 0.0),
        ("mixtral", "lora", 0.0),
    ],
)
def test_the_same_gradients_from_less_that_is_kept(family, adapter, dropout):
    wanted, none = backward("none", adapter, dropout, family)
    kept = {}
    for how in ("selective", "full", 1, 2, 3, 4):
        found, kept[how] = backward(how, adapter, dropout, family)
        assert wanted
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert kept["full"] == kept[1] < kept["selective"] < none
    assert kept[1] < kept[2] < kept[3] == kept[4] < none  # of four layers 4, 2, 1 and 1 recompute


def test_every_nth_layer_counts_from_the_first():
    """Of seven layers with n = 3 the third and the sixth."""
    model = tiny_model("llama", num_hidden_layers=7)
    assert checkpoint_activations(model, 3) == 2
    changed = ["forward" in vars(layer) for layer in decoder_layers(model)]
    assert changed == [False, False, True, False, False, True, False]


def test_nothing_is_recomputed_without_gradients():
    model = tiny_model("llama")
    policy, _ = make_policy(model)
    batch = collate(EXAMPLES, np.arange(6))
    with torch.no_grad():
        wanted = policy(batch)
        assert checkpoint_activations(model, "full") == 2
        assert torch.equal(policy(batch), wanted)
