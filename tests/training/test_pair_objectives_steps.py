"""A step over pairs is the same however it is cut into micro-batches and dealt out to processes; also where it is no sum over pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs_driver import pairs
from safetensors.torch import load_file
from test_parallel import ended, launch

from builders import random_answers, tiny_model, with_lora
from steppers import one_step, plain_logps, train
from tunesmith.errors import InputError
from tunesmith.model.policy import Policy, make_policy
from tunesmith.run import open_run
from tunesmith.training.compared import Compared
from tunesmith.training.make_objective import make
from tunesmith.training.masters import Masters
from tunesmith.training.objectives import aot
from tunesmith.training.regularizers import kl_to_base

SECTIONS = {
    "dpo": {"name": "dpo", "sft": 0.5, "margin": 0.3},
    "weighted": {"name": "dpo", "weighted": True, "label_smoothing": 0.1},
    "desensitised": {"name": "ipo", "desensitise": 0.4},
    "apo": {"name": "apo", "variant": "down"},
    "aot": {"name": "aot", "sft": 0.5, "desensitise": 0.4},
    "aot_unpaired": {"name": "aot", "paired": False, "label_smoothing": 0.1},
}


def answers(count, seed=4):
    examples = random_answers(8, answers=count, seed=seed, scores=True)
    rng = np.random.default_rng(seed)
    examples.constants["reference"] = rng.normal(-4.5, 1.0, int(examples.scored.sum())).astype(np.float32)
    return examples


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_micro_batches_change_nothing(section, count):
    examples = answers(count)
    whole = one_step(tiny_model(dtype=torch.float64), examples, section, microbatch_tokens=10_000)
    parts = one_step(tiny_model(dtype=torch.float64), examples, section, microbatch_tokens=60)
    assert whole[3] == 1
    assert parts[3] >= 4
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)  # told in float32
    assert parts[2] == pytest.approx(whole[2], rel=1e-5)
    for name, gradient in whole[1].items():
        assert (parts[1][name] - gradient).abs().max() <= 1e-10 * max(1.0, gradient.abs().max().item()), name
    assert max(g.abs().max().item() for g in whole[1].values()) > 1e-3


@pytest.mark.parametrize("count", [2, 3])
def test_a_row_that_is_there_twice_counts_twice(count):
    """Also in aot, whose sorting puts the two at different places. Without links: what rows share would run once for other rows in
    other batches, and transformers' norms round to fp32 in any model."""
    examples, rows = answers(count), [3, 0, 3, 5, 6, 5, 3]
    for name in ("dpo", "aot"):
        whole, parts = (
            one_step(tiny_model(dtype=torch.float64), examples, {"name": name}, tokens, links=False, rows=rows)
            for tokens in (10_000, 60)
        )
        assert whole[3] == 1
        assert parts[3] >= 3
        assert parts[0] == pytest.approx(whole[0], rel=1e-6)
        for weight, gradient in whole[1].items():
            assert (parts[1][weight] - gradient).abs().max() <= 1e-10 * max(1.0, gradient.abs().max().item()), weight


def test_a_list_of_four_is_its_six_pairs():
    """Each with a sixth of the row's weight: the loss is the mean over rows of the mean over their pairs."""
    examples = answers(4)
    loss, *_ = one_step(tiny_model(), examples, {"name": "dpo"})
    reference = np.split(examples.constants["reference"], examples.scored_offsets[1:-1])
    ratios = [p.sum() - r.sum() for p, r in zip(plain_logps(tiny_model(), examples), reference, strict=True)]
    wanted = [
        np.log1p(np.exp(-0.1 * (row[first] - row[second])))
        for row in np.reshape(ratios, (8, 4))
        for first in range(4)
        for second in range(first + 1, 4)
    ]
    assert loss == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_first_pass_sees_the_dropout_of_the_second(monkeypatch):
    """What aot's slopes were found at are the log-probs that they are applied to."""
    passes = {False: [], True: []}
    original = Compared._found

    def noted(self, policy, batch):
        found = original(self, policy, batch)
        passes[torch.is_grad_enabled()].append(found.logps.detach())
        return found

    monkeypatch.setattr(Compared, "_found", noted)
    model = with_lora(tiny_model(), dropout=0.3)
    torch.manual_seed(0)
    one_step(model, answers(2), {"name": "aot"}, microbatch_tokens=60)
    first, second = passes[False], passes[True]
    assert len(first) == len(second) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_regularizer_sees_the_same_hidden_states(weighted):
    """kl_to_base takes what the policy kept of its forward, and wpo's weights look at it too."""
    policy, _ = make_policy(with_lora(tiny_model()))
    objective, examples = make({"name": "dpo", "weighted": weighted}), answers(2)
    regularizer = kl_to_base.make()
    regularizer.begin(policy, Masters(policy.model), 1)
    (batch,) = objective.batches(examples, np.arange(examples.rows), 10_000, policy)
    objective.loss(policy, batch, objective.totals(examples, np.arange(examples.rows)))
    assert regularizer.loss(policy, batch).item() == pytest.approx(0.0, abs=1e-4)  # the policy is as it began


def test_weights_need_hidden_states():
    policy = Policy(tiny_model(), flat=False, trunk=False)
    objective, examples = make({"name": "dpo", "weighted": True}), answers(2)
    rows = np.arange(examples.rows)
    (batch,) = objective.batches(examples, rows, 10_000, policy)
    with pytest.raises(
        InputError, match=r"objective.weighted needs the hidden states .*; set objective.weighted: false"
    ):
        objective.loss(policy, batch, objective.totals(examples, rows))


@pytest.mark.slow
def test_two_processes_sort_one_step(tmp_path):
    """Ten steps of two processes end in one process's weights, and tell the same; also where one of them alone runs out of memory,
    after the first pass, and begins its steps anew in smaller parts."""
    sections = {"paired": {"name": "aot"}, "unpaired": {"name": "aot", "paired": False}}
    rooms = {"paired": 130, "unpaired": 10_000}
    jobs = tmp_path / "jobs.json"
    asked = [{"folder": str(tmp_path / f"{n}-2"), "section": s, "room": rooms[n]} for n, s in sections.items()]
    jobs.write_text(json.dumps(asked))
    told = ended(launch([str(Path(__file__).with_name("pairs_driver.py")), str(jobs)]))
    assert [code for code, *_ in told] == [0, 0], "\n".join(err for *_, err in told)
    for name, section in sections.items():
        with open_run(tmp_path / name) as run:
            loop = train(run, tiny_model(dtype=torch.float64), pairs(), section, 10)
        found = load_file(tmp_path / f"{name}-2" / "weights.safetensors")
        for weight, wanted in loop.masters.masters.items():
            assert (found[weight] - wanted).abs().max() <= 1e-9, weight
        one, two = (steps(tmp_path / folder) for folder in (name, f"{name}-2"))
        for key in ("loss", "rewards_margins", "rewards_accuracies", "logps_chosen"):
            np.testing.assert_allclose([e[key] for e in two], [e[key] for e in one], rtol=1e-5, atol=1e-6)


def steps(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] == "step"]


def test_sorting_each_micro_batch_alone_would_be_another_loss():
    """So that the tests above have something to find."""
    examples = answers(2)
    loss, *_ = one_step(tiny_model(dtype=torch.float64), examples, {"name": "aot"}, microbatch_tokens=60)
    dpo, *_ = one_step(tiny_model(dtype=torch.float64), examples, {"name": "dpo"}, microbatch_tokens=60)
    assert aot.whole_step
    assert abs(loss - dpo) > 1e-3
