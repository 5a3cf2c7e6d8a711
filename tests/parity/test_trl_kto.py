"""The same verdicts through TRL's KTOTrainer give the same loss, gradients, logged rewards and 20 steps (fp32, 1e-5)."""

import numpy as np
import pytest
import torch
from trl_pairs import EPS, disturbed, steps_of_ours, trl, with_reference

from builders import random_verdicts, tiny_model, with_lora
from steppers import one_step
from tunesmith.data.mismatched import Mismatched
from tunesmith.data.records import Origin, Verdict
from tunesmith.training.batch import epoch_order

LOGGED = {
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "rewards/margins": "rewards_margins",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}
CASES = {  # TRL's options and ours
    "kto": ({"beta": 0.3}, {"name": "kto", "beta": 0.3}),
    "kto-weighted": (
        {"desirable_weight": 2.0, "undesirable_weight": 0.5},
        {"name": "kto", "desirable_weight": 2.0, "undesirable_weight": 0.5},
    ),
    "apo_zero_unpaired": ({"loss_type": "apo_zero_unpaired", "beta": 0.5}, {"name": "apo_zero_unpaired", "beta": 0.5}),
}


class Trainer(trl.KTOTrainer):
    """KTOTrainer of rows that are tokens already."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def kto_trainer(model, reference, rows, folder, trainer=Trainer, **options):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="t0", eos_token="t1")
    config = trl.KTOConfig(
        output_dir=str(folder), per_device_train_batch_size=8, gradient_checkpointing=False, bf16=False, use_cpu=True,
        report_to="none", **options,
    )  # fmt: skip
    return trainer(
        model, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def rows_of(examples):
    """The verdicts as TRL's collator takes them."""

    def example(i):
        ids = examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tolist()
        prompt = len(ids) - int(examples.scored[examples.offsets[i] : examples.offsets[i + 1]].sum())
        return ids[:prompt], ids[prompt:]

    rows = []
    for first, behind in zip(examples.groups[:-1].tolist(), examples.groups[1:].tolist(), strict=True):
        prompt, answer = example(first)
        row = {"prompt_ids": prompt, "completion_ids": answer, "label": bool(examples.values[first] > 0)}
        rows.append(row | ({"KL_completion_ids": example(first + 1)[1]} if behind - first == 2 else {}))
    return rows


@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_rewards(case, tmp_path):
    """Ours run in several micro-batches, the mismatched answers first; theirs in one batch of each. The policy has drifted from the
    reference so that their KL is above 0."""
    theirs, section = CASES[case]
    reference = tiny_model()
    examples = with_reference(random_verdicts(8, seed=7, mismatched=case != "apo_zero_unpaired"), reference)
    model = disturbed(tiny_model())
    trainer = kto_trainer(model, reference, rows_of(examples), tmp_path, **theirs)
    (inputs,) = trainer.get_train_dataloader()
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    found, gradients, facts, batches = one_step(disturbed(tiny_model()), examples, section)
    assert batches > 2
    assert found == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    for name, p in model.named_parameters():
        assert (gradients[name] - p.grad).abs().max() <= 1e-5 * max(1.0, p.grad.abs().max().item()), name
    assert max(p.grad.abs().max().item() for p in model.parameters()) > 1e-3  # they are of something
    for name, ours in LOGGED.items():
        assert facts[ours] == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name
    if case != "apo_zero_unpaired":
        assert logged["kl"] > 0.05
        assert facts["baseline"] == pytest.approx(logged["kl"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_twenty_steps(adapter, tmp_path):
    """The same rows in the same order, eight a step, the start as reference: every step's loss, rewards, and the weights at the end."""
    oracle, ours, start = ((tiny_model() if adapter == "full" else with_lora(tiny_model())) for _ in range(3))
    examples = with_reference(random_verdicts(160, seed=8), start)
    rows = rows_of(examples)
    trainer = kto_trainer(
        oracle, start if adapter == "full" else None, [rows[i] for i in epoch_order(160, seed=0, epoch=0)], tmp_path / "trl",
        learning_rate=1e-3, lr_scheduler_type="linear", max_steps=20, logging_steps=1, save_strategy="no", disable_tqdm=True,
        adam_epsilon=EPS,
    )  # fmt: skip
    trainer.train()
    wanted = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = steps_of_ours(ours, examples, 20, tmp_path / "ours", {"name": "kto"})
    assert len(found) == len(wanted) == 20
    for theirs, name in {"loss": "loss", "kl": "baseline", **LOGGED}.items():
        logged = [
            (f[name], w[theirs]) for f, w in zip(found, wanted, strict=True) if theirs in w
        ]  # not of a label it has none of
        assert len(logged) > 10
        np.testing.assert_allclose(*zip(*logged, strict=True), atol=1e-5, rtol=1e-5)
    assert max(e["kl"] for e in wanted) > 1e-2  # it was measured from something
    mine = dict(ours.named_parameters())
    for name, p in oracle.named_parameters():
        if p.requires_grad:
            assert (mine[name] - p).abs().max() <= 1e-5 * max(1.0, p.abs().max().item()), name
    assert torch.tensor([e["loss"] for e in found]).diff().abs().max() > 1e-3  # something was learned


def test_answers_are_mismatched_as_trl_does(tmp_path):
    """Where all prompts differ, and its batch is the whole set."""
    texts = [(f"t{i} t{i + 20}", f"t{i + 40} t{i % 3 + 60} t1") for i in range(8)]
    rows = [{"prompt": f"{p} ", "completion": c, "label": i % 2 == 0} for i, (p, c) in enumerate(texts)]
    wanted = kto_trainer(tiny_model(), disturbed(tiny_model()), rows, tmp_path, trl.KTOTrainer).train_dataset
    turns = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    verdicts = [
        Verdict(turns("user", p), turns("assistant", c), True, Origin("x", i + 1)) for i, (p, c) in enumerate(texts)
    ]
    for row, theirs in zip(Mismatched(verdicts), wanted["KL_completion_ids"], strict=True):
        assert [int(word[1:]) for word in row.answers[1][0]["content"].split()] == theirs
