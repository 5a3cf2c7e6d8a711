"""The same rows and mask through TRL's SFTTrainer give the same loss, gradients and 20 steps (fp32, 1e-5), full and LoRA."""

import numpy as np
import pytest
import torch
from test_transformers import gradients
from trl_steps import assert_same_steps, randomise, rows_of, sft_trainer

from builders import random_examples, tiny_model
from tunesmith.model.adapters import full, lora
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import microbatches
from tunesmith.training.objectives import sft


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_loss_and_gradients(family, adapter, tmp_path):
    examples = random_examples(n=8, seed=4)
    attach = full.attach if adapter == "full" else lora.attach
    oracle = randomise(attach(tiny_model(family)).model)
    trainer = sft_trainer(oracle, rows_of(examples), tmp_path)
    (inputs,) = trainer.get_train_dataloader()
    oracle.train()
    wanted = trainer.compute_loss(oracle, inputs, num_items_in_batch=torch.tensor(int(examples.scored.sum())))
    wanted.backward()

    ours = randomise(attach(tiny_model(family)).model)
    fuse(ours)
    policy, _ = make_policy(ours)
    policy.train()
    total = 0.0
    for batch in microbatches(examples, np.arange(8), capacity=40):
        loss = sft.loss(policy(batch), batch.weights) / examples.scored.sum()
        loss.backward()
        total += loss.item()

    assert abs(total - wanted.item()) <= 1e-5
    theirs, found = gradients(oracle), gradients(policy.model)
    assert theirs.keys() == found.keys()
    for name, gradient in theirs.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_twenty_steps(adapter, tmp_path):
    """The same rows in the same order, eight a step: every step's loss and the weights at the end."""
    attach = full.attach if adapter == "full" else lora.attach
    oracle, ours = (randomise(attach(tiny_model()).model) for _ in range(2))
    fuse(ours)
    assert_same_steps(oracle, ours, random_examples(n=160, seed=5), 20, tmp_path)
