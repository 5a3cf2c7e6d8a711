"""TRL's DPOTrainer as an oracle: the same pairs, reference and steps for it and for our loop."""

import json

import numpy as np
import pytest
import torch

from builders import tiny_model
from steppers import plain_logps, train
from tunesmith.run import open_run
from tunesmith.training.batch import epoch_order

trl = pytest.importorskip("trl", reason="needs trl, the oracle (pip install -e '.[dev]')")

EPS = 1e-6  # at 1e-8 Adam takes what rounding leaves of a gradient of 0 for a direction: two answers' gradients often cancel


def with_reference(examples, model):
    """Return the examples with the model's log-prob of every scored token as their reference."""
    examples.constants["reference"] = np.concatenate(plain_logps(model, examples)).astype(np.float32)
    model.float()
    return examples


def disturbed(model, seed=3, size=0.02):
    """Return the model with noise on its weights: another model, not far from it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * size)
    return model


def rows_of(examples):
    """Return the pairs as TRL's collator takes them."""

    def example(i):
        ids = examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tolist()
        prompt = len(ids) - int(examples.scored[examples.offsets[i] : examples.offsets[i + 1]].sum())
        return ids[:prompt], ids[prompt:]

    rows = []
    for g in range(examples.rows):
        (prompt, chosen), (_, rejected) = example(2 * g), example(2 * g + 1)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


class Trainer(trl.DPOTrainer):
    """DPOTrainer of rows that are tokens already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def dpo_trainer(model, reference, rows, folder, **options):
    """TRL's trainer of a model on rows, as plain as it goes: fp32, no activation checkpointing, nothing reported."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0")),
        pad_token="t0",
        eos_token="t1",
    )
    config = trl.DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        train_sampling_strategy="sequential",
        **options,
    )
    return Trainer(
        model, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def one_step_of_trl(examples, reference, folder, **options):
    """Return loss, gradients by name and logged facts of one batch of all the examples, of a tiny model."""
    model = tiny_model()
    trainer = dpo_trainer(model, reference, rows_of(examples), folder, **options)
    (inputs,) = trainer.get_train_dataloader()
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    facts = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}, facts


def steps_of_trl(model, reference, examples, steps, folder, **options):
    """Train and return what was logged at each step."""
    rows = rows_of(examples)
    trainer = dpo_trainer(
        model, reference, [rows[i] for i in epoch_order(examples.rows, seed=0, epoch=0)], folder,
        learning_rate=1e-3, lr_scheduler_type="linear", max_steps=steps, logging_steps=1, save_strategy="no",
        disable_tqdm=True, adam_epsilon=EPS, **options,
    )  # fmt: skip
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def steps_of_ours(model, examples, steps, folder, section):
    """Train, in micro-batches, and return the events of the steps."""
    with open_run(folder) as run:
        train(run, model, examples, section, steps, eps=EPS)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] == "step"]
