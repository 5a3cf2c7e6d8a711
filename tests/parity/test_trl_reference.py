"""The reference's log-probs of TRL's DPOTrainer, computed before training (precompute_ref_log_probs), are ours (fp32, 1e-5)."""

import numpy as np
import pytest
from trl_pairs import disturbed, dpo_trainer, rows_of

from builders import random_answers, tiny_model
from tunesmith.model.policy import make_policy
from tunesmith.training.make_objective import make
from tunesmith.training.reference_logps import Clock, log_probs, look_up
from tunesmith.training.reference_run import of_steps
from tunesmith.training.reference_store import Store


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_they_are_trls(family, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    examples = random_answers(16, seed=2)
    reference = disturbed(tiny_model(family))
    trainer = dpo_trainer(tiny_model(family), reference, rows_of(examples), tmp_path, precompute_ref_log_probs=True)
    wanted = [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]

    policy = make_policy(disturbed(tiny_model(family)))[0]
    asked = of_steps(make({"name": "dpo"}), policy, examples, [np.arange(9), np.arange(9, 16)], 100)
    values = log_probs(policy, look_up(examples, asked, []), Store("k"), Clock(print, 1))
    sums = np.add.reduceat(values.astype(np.float64), examples.scored_offsets[:-1])
    assert np.abs(sums - np.stack(wanted, 1).flatten()).max() <= 1e-5
