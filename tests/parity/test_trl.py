"""The same rows and mask through TRL's SFTTrainer give the same loss and gradients (fp32, 1e-5), full and LoRA."""

import numpy as np
import pytest
import torch
from test_transformers import gradients

from builders import random_examples, tiny_model
from tunesmith.model.adapters import full, lora
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import microbatches
from tunesmith.training.objectives import sft

trl = pytest.importorskip("trl", reason="needs trl, the oracle (pip install -e '.[dev]')")


def rows_of(examples):
    """The examples as TRL takes them: token ids and a mask of the completion's tokens."""
    spans = zip(examples.offsets[:-1], examples.offsets[1:], strict=True)
    return [
        {"input_ids": examples.ids[a:b].tolist(), "completion_mask": examples.scored[a:b].astype(int).tolist()}
        for a, b in spans
    ]


def randomise(model):
    """B starts at zero, which would hide A's gradients."""
    torch.manual_seed(11)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_loss_and_gradients(family, adapter, tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    examples = random_examples(n=8, seed=4)
    attach = full.attach if adapter == "full" else lora.attach
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0")),
        pad_token="t0",
        eos_token="t1",
    )
    config = trl.SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        completion_only_loss=True,
    )
    oracle = randomise(attach(tiny_model(family)))
    trainer = trl.SFTTrainer(
        oracle, args=config, train_dataset=Dataset.from_list(rows_of(examples)), processing_class=tokenizer
    )
    (inputs,) = trainer.get_train_dataloader()
    oracle.train()
    wanted = trainer.compute_loss(oracle, inputs, num_items_in_batch=torch.tensor(int(examples.scored.sum())))
    wanted.backward()

    ours = randomise(attach(tiny_model(family)))
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
