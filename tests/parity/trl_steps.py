"""TRL's SFTTrainer as an oracle: the same rows, mask and steps for it and for our loop."""

import json

import numpy as np
import pytest
import torch

from tunesmith.model.policy import make_policy
from tunesmith.run import open_run
from tunesmith.training.batch import epoch_order
from tunesmith.training.loop import Loop
from tunesmith.training.objective import Objective
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.plan import Plan

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


def sft_trainer(model, rows, folder, **options):
    """TRL's trainer of a model on rows, as plain as it goes: fp32, no activation checkpointing, nothing reported."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0")),
        pad_token="t0",
        eos_token="t1",
    )
    config = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        completion_only_loss=True,
        **options,
    )
    return trl.SFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def assert_same_steps(oracle, ours, examples, steps, folder):
    """The same rows in the same order, eight a step: every step's loss and the weights at the end, to 1e-5."""
    wanted = _losses_of_trl(oracle, examples, steps, folder / "trl")
    found = _losses_of_ours(ours, examples, steps, folder / "ours")
    assert len(wanted) == steps
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)
    theirs = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    mine = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    assert theirs.keys() == mine.keys()
    for name, p in theirs.items():
        assert (mine[name] - p).abs().max() <= 1e-5 * max(1.0, p.abs().max().item()), name


def _losses_of_trl(model, examples, steps, folder):
    rows = rows_of(examples)
    trainer = sft_trainer(
        model,
        [rows[i] for i in epoch_order(len(examples), seed=0, epoch=0)],
        folder,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        max_steps=steps,
        logging_steps=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    for p in model.parameters():
        p.data = p.data.float() if p.requires_grad else p.data  # TRL puts the adapters of quantised models into bf16
    randomise(model)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _losses_of_ours(model, examples, steps, folder):
    plan = Plan(
        steps=steps,
        tokens_per_step=None,
        batch_size=8,
        microbatch_tokens=60,
        learning_rate=1e-3,
        schedule="linear",
        warmup=0,
        clip_norm=1.0,
        seed=0,
        evaluate_every=100,
        checkpoint_every=100,
        keep_last=1,
        early_stopping=None,
    )
    make = lambda masters: adamw(masters, learning_rate=1e-3)  # noqa: E731
    every = np.arange(len(examples))
    with open_run(folder) as run:
        Loop(
            run, make_policy(model)[0], Objective(sft.loss), examples, lambda _: every, plan, make, dict, "data"
        ).train()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e["loss"] for e in events if e["event"] == "step"]
