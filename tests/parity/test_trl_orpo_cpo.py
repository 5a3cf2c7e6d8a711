"""The same pairs through TRL's CPOTrainer and ORPOTrainer give the same loss, gradients and logged rewards (fp32, 1e-5), loss by loss.

ORPO's likelihood term is of prompt and answer there, of the answer here as in the paper. So the whole loss is compared on prompts of one
token, which is never predicted, and on longer ones the term that compares.
"""

import numpy as np
import pytest
from trl_pairs import trl

from builders import random_answers, tiny_model
from steppers import one_step

cpo = pytest.importorskip("trl.experimental.cpo")
orpo = pytest.importorskip("trl.experimental.orpo")
LOGGED = {
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "rewards/margins": "rewards_margins",
    "rewards/accuracies": "rewards_accuracies",
}
CASES = {  # TRL's options and ours
    "cpo": ({}, {"name": "cpo"}),
    "cpo-smoothed": (
        {"label_smoothing": 0.2, "cpo_alpha": 0.5, "beta": 0.3},
        {"name": "cpo", "label_smoothing": 0.2, "sft": 0.5, "beta": 0.3},
    ),
    "hinge": ({"loss_type": "hinge"}, {"name": "hinge", "reference": "none", "sft": 1.0}),
    "ipo": ({"loss_type": "ipo", "beta": 0.4}, {"name": "ipo", "beta": 0.4, "reference": "none", "sft": 1.0}),
    "simpo": (
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5},
    ),
    "simpo-smoothed": (
        {"loss_type": "simpo", "cpo_alpha": 0.5, "beta": 2.5, "simpo_gamma": 0.5, "label_smoothing": 0.1},
        {"name": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.2, "label_smoothing": 0.1, "sft": 0.5},
    ),
    "alphapo": (
        {"loss_type": "alphapo", "alpha": 0.1, "beta": 2.5, "simpo_gamma": 0.25},
        {"name": "simpo", "alpha": 0.1, "beta": 2.5, "gamma_beta_ratio": 0.1},
    ),
    "alphapo-below": (
        {"loss_type": "alphapo", "alpha": -0.5, "beta": 2.5, "simpo_gamma": 0.25},
        {"name": "simpo", "alpha": -0.5, "beta": 2.5, "gamma_beta_ratio": 0.1},
    ),
}


def trainer(model, make, config, folder, **options):
    """A trainer of TRL's, on a row that nobody reads."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(97)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="t0", eos_token="t1", bos_token="t2")
    row = Dataset.from_list([{"prompt": "t3", "chosen": "t4", "rejected": "t5"}])
    given = config(
        output_dir=str(folder), gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none",
        remove_unused_columns=False, **options,
    )  # fmt: skip
    return make(model, args=given, train_dataset=row, processing_class=tokenizer)


def batch_of(trainer, examples):
    """The pairs as TRL's own collator pads them; prompts are no labels."""
    features = []
    for g in range(examples.rows):
        feature = {"prompt": "", "prompt_input_ids": [0], "prompt_attention_mask": [1]}
        for side, i in (("chosen", 2 * g), ("rejected", 2 * g + 1)):
            tokens = slice(examples.offsets[i], examples.offsets[i + 1])
            ids, scored = examples.ids[tokens], examples.scored[tokens]
            feature |= {
                f"{side}_input_ids": ids.tolist(),
                f"{side}_attention_mask": [1] * len(ids),
                f"{side}_labels": np.where(scored, ids, -100).tolist(),
            }
        features.append(feature)
    return trainer.data_collator(features)


def assert_same(examples, oracle, section):
    """Theirs in one batch, ours with prompts shared and in several."""
    theirs, loss_of = oracle
    loss, logged = loss_of(theirs, batch_of(theirs, examples))
    theirs.model.train()
    loss.backward()
    found, gradients, facts, batches = one_step(tiny_model(), examples, section)
    assert batches > 1
    assert found == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    for name, p in theirs.model.named_parameters():
        assert (gradients[name] - p.grad).abs().max() <= 1e-5 * max(1.0, p.grad.abs().max().item()), name
    assert max(p.grad.abs().max().item() for p in theirs.model.parameters()) > 1e-3  # they are of something
    return facts, logged


def assert_told(facts, logged):
    for name, ours in LOGGED.items():
        assert facts[ours] == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name


def whole(trainer, batch):
    return trainer.get_batch_loss_metrics(trainer.model, batch)


def comparison_alone(trainer, batch):
    _, logged = whole(trainer, batch)
    chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
    return -trainer.odds_ratio_loss(chosen, rejected)[0].mean(), logged


@pytest.mark.parametrize("case", CASES)
def test_cpo_simpo_and_alphapo(case, tmp_path):
    options, section = CASES[case]
    theirs = trainer(tiny_model(), cpo.CPOTrainer, cpo.CPOConfig, tmp_path, **options)
    facts, logged = assert_same(random_answers(8, seed=4), (theirs, whole), section)
    if (
        case != "ipo"
    ):  # whose rewards are per token there; here of whole answers, as the DPOTrainer's of the same loss are
        assert_told(facts, logged)


def test_orpo_whole_where_prompts_are_one_token(tmp_path):
    theirs = trainer(tiny_model(), orpo.ORPOTrainer, orpo.ORPOConfig, tmp_path, beta=0.3)
    examples = random_answers(8, seed=4, prompt=1)
    assert_told(*assert_same(examples, (theirs, whole), {"name": "orpo", "beta": 0.3}))


def test_orpos_comparison_where_prompts_are_long(tmp_path):
    theirs = trainer(tiny_model(), orpo.ORPOTrainer, orpo.ORPOConfig, tmp_path)
    assert_told(*assert_same(random_answers(8, seed=4), (theirs, comparison_alone), {"name": "orpo", "sft": 0.0}))


def test_what_trl_has_beside_these():
    """A loss type that it gains is one that is not compared here."""
    choices = cpo.CPOConfig.__dataclass_fields__["loss_type"].metadata["choices"]
    assert set(choices) == {"sigmoid", "hinge", "ipo", "simpo", "alphapo"}
    assert set(trl.KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]) == {"kto", "apo_zero_unpaired"}
