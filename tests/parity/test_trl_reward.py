"""The same pairs through TRL's RewardTrainer give the same loss, gradients, logged rewards and steps (fp32, 1e-5)."""

import json

import numpy as np
import pytest

from builders import random_answers, tiny_scorer, with_lora
from steppers import one_step, train
from tunesmith.run import open_run
from tunesmith.training.batch import epoch_order

trl = pytest.importorskip("trl", reason="needs trl, the oracle (pip install -e '.[dev]')")

CASES = {
    "plain": ({}, {}),
    "centred": ({"center_rewards_coefficient": 0.01}, {"center": 0.01}),
    "margins": ({}, {"margin": 1.0}),
    "margins centred": ({"center_rewards_coefficient": 0.1}, {"margin": 1.0, "center": 0.1}),
}
LOGGED = {"accuracy": "rewards_accuracies", "margin": "rewards_margins"}


class Trainer(trl.RewardTrainer):
    """RewardTrainer of rows that are tokens already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def at_the_end(examples):
    """Return the examples with their last tokens alone scored, as a reward model's rows are rendered; none is padding (0)."""
    examples.ids[examples.ids == 0] = 1
    examples.scored[:] = False
    examples.scored[examples.offsets[1:] - 1] = True
    return examples


def reward_trainer(model, examples, folder, order, margins, **options):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0")),
        pad_token="t0",
        eos_token="t1",
    )
    config = trl.RewardConfig(
        output_dir=str(folder), per_device_train_batch_size=8, gradient_checkpointing=False, bf16=False, use_cpu=True,
        report_to="none", train_sampling_strategy="sequential", disable_dropout=False, **options,
    )  # fmt: skip
    ids = [examples.ids[a:b].tolist() for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True)]
    rows = [{"chosen_ids": ids[2 * g], "rejected_ids": ids[2 * g + 1]} for g in order]
    if margins:
        apart = examples.values[::2] - examples.values[1::2]
        rows = [{**row, "margin": float(apart[g])} for row, g in zip(rows, order, strict=True)]
    return Trainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_logged_rewards(case, adapter, tmp_path):
    theirs, ours = CASES[case]
    examples = at_the_end(random_answers(8, seed=3, scores=True))
    attach = (lambda model: model) if adapter == "full" else with_lora
    oracle = attach(tiny_scorer())
    trainer = reward_trainer(oracle, examples, tmp_path, range(8), "margin" in ours, **theirs)
    (inputs,) = trainer.get_train_dataloader()
    oracle.train()
    wanted = trainer.compute_loss(oracle, inputs)
    wanted.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    loss, gradients, facts, batches = one_step(attach(tiny_scorer()), examples, {"name": "reward", **ours})
    assert batches > 2
    assert loss == pytest.approx(wanted.item(), abs=1e-5)
    expected = {n: p.grad for n, p in oracle.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    assert any("score" in name for name in gradients)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name
    for name, mine in LOGGED.items():
        assert facts[mine] == pytest.approx(logged[name], abs=1e-5)
    mean = (facts["rewards_chosen"] + facts["rewards_rejected"]) / 2
    assert mean == pytest.approx(logged["mean_reward"], abs=1e-5)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_twenty_steps(adapter, tmp_path):
    """The same pairs in the same order, eight a step, in our micro-batches of 100 tokens: losses and the weights at the end."""
    examples, steps = at_the_end(random_answers(160, seed=5)), 20
    oracle, ours = ((tiny_scorer() if adapter == "full" else with_lora(tiny_scorer())) for _ in range(2))
    order = epoch_order(160, seed=0, epoch=0)
    trainer = reward_trainer(
        oracle, examples, tmp_path / "trl", order, False, center_rewards_coefficient=0.01, learning_rate=1e-3,
        lr_scheduler_type="linear", max_steps=steps, logging_steps=1, save_strategy="no", disable_tqdm=True,
        adam_epsilon=1e-6,
    )  # fmt: skip
    trainer.train()
    wanted = [entry for entry in trainer.state.log_history if "loss" in entry]
    with open_run(tmp_path / "ours") as run:
        train(run, ours, examples, {"name": "reward", "center": 0.01}, steps, eps=1e-6)
    events = [json.loads(line) for line in (tmp_path / "ours" / "events.jsonl").read_text().splitlines()]
    found = [e for e in events if e["event"] == "step"]
    assert len(found) == len(wanted) == steps
    for theirs, mine in {"loss": "loss", **LOGGED}.items():
        np.testing.assert_allclose([e[mine] for e in found], [e[theirs] for e in wanted], atol=1e-5, rtol=1e-5)
    theirs = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    mine = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    assert theirs.keys() == mine.keys()
    for name, p in theirs.items():
        assert (mine[name] - p).abs().max() <= 1e-5 * max(1.0, p.abs().max().item()), name
    assert abs(found[-1]["loss"] - found[0]["loss"]) > 1e-3  # something was learnt
