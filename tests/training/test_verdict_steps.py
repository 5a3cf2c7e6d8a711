"""Steps over verdicts and ranked lists are the same however they are cut into micro-batches and dealt out to processes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs_driver import alone, verdicts
from safetensors.torch import load_file
from test_pair_objectives_steps import steps
from test_parallel import ended, launch

from builders import random_answers, random_verdicts, tiny_model
from steppers import one_step, plain_logps, train
from tunesmith.model.policy import make_policy
from tunesmith.run import open_run
from tunesmith.training.make_objective import make

BCO, KTO = {"name": "bco", "beta": 0.3, "undesirable_weight": 2.0}, {"name": "kto", "desirable_weight": 1.5}
CASES = {
    "kto": (KTO, random_verdicts(8, seed=4)),
    "bco": (BCO, random_verdicts(8, seed=4, mismatched=False)),
    "apo_zero_unpaired": ({"name": "apo_zero_unpaired"}, random_verdicts(8, seed=4, mismatched=False)),
    "plackett_luce": ({"name": "plackett_luce", "sft": 0.5}, random_answers(8, answers=4, seed=4)),
    "orpo": ({"name": "orpo"}, random_answers(8, seed=4)),
    "simpo": ({"name": "simpo", "alpha": 0.1, "sft": 0.5}, random_answers(8, seed=4)),
}


@pytest.fixture(autouse=True)
def _reference():
    for _, examples in CASES.values():
        noise = np.random.default_rng(4).normal(-5.5, 1.0, int(examples.scored.sum()))
        examples.constants["reference"] = noise.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_change_nothing(case):
    section, examples = CASES[case]
    whole = one_step(tiny_model(dtype=torch.float64), examples, section, microbatch_tokens=10_000)
    parts = one_step(tiny_model(dtype=torch.float64), examples, section, microbatch_tokens=60)
    assert whole[3] == 1 + (case == "kto")
    assert parts[3] >= 4
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)  # told in float32
    both = parts[2].keys() & whole[2].keys()  # bco's baseline is told where a first pass found it
    assert len(both) >= 5
    assert {k: parts[2][k] for k in both} == pytest.approx({k: whole[2][k] for k in both}, rel=1e-5)
    for name, gradient in whole[1].items():
        assert (parts[1][name] - gradient).abs().max() <= 1e-10 * max(1.0, gradient.abs().max().item()), name
    assert max(g.abs().max().item() for g in whole[1].values()) > 1e-3


def ratios(examples):
    reference = np.split(examples.constants["reference"].astype(np.float64), examples.scored_offsets[1:-1])
    return np.array([p.sum() - r.sum() for p, r in zip(plain_logps(tiny_model(), examples), reference, strict=True)])


def test_bco_is_what_its_paper_says():
    """In plain numpy, from each row's own forward."""
    section, examples = CASES["bco"]
    r, good = 0.3 * ratios(examples), examples.values > 0
    delta = (r[good].mean() + r[~good].mean()) / 2
    losses = np.log1p(np.exp(np.where(good, delta - r, r - delta))) * np.where(good, 1.0, 2.0)
    loss, _, facts, _ = one_step(tiny_model(), examples, section, microbatch_tokens=60)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert facts["baseline"] == pytest.approx(delta / 0.3, rel=1e-5)
    assert facts["rewards_margins"] == pytest.approx(r[good].mean() - r[~good].mean(), rel=1e-5)


def test_ktos_first_pass_is_of_the_mismatched_answers():
    section, examples = CASES["kto"]
    z = ratios(examples)[1::2].mean()
    assert z > 1
    assert one_step(tiny_model(), examples, section)[2]["baseline"] == pytest.approx(z, rel=1e-5)


def test_a_list_is_the_product_of_its_choices():
    _, examples = CASES["plackett_luce"]
    r = 0.1 * ratios(examples).reshape(8, 4)
    wanted = sum(math.log(sum(math.exp(x) for x in row[k:])) - row[k] for row in r for k in range(4)) / 8
    assert one_step(tiny_model(), examples, {"name": "plackett_luce"})[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_what_is_measured_of_rows_held_out(name):
    """Accuracy is about the baseline: all answers may have become less likely, the bad ones more so."""
    section, examples = CASES[name]
    r, good = ratios(examples), examples.values > 0
    if name == "kto":
        z, r, good = r[1::2].mean(), r[::2], good[::2]
    else:
        z = (r[good].mean() + r[~good].mean()) / 2
    policy, _ = make_policy(tiny_model())
    found = make(section).measure(policy, examples, 60)
    assert found["verdict_accuracy"]["value"] == np.mean((r > z) == good)
    assert found["verdict_accuracy"]["value"] != np.mean((r > 0) == good)
    margin = found["reward_margin"]
    beta = section.get("beta", 0.1)
    assert margin["value"] == pytest.approx(beta * (r[good].mean() - r[~good].mean()), rel=1e-5)
    assert margin["low"] < margin["value"] < margin["high"]
    assert found["validation_loss"]["n"] == margin["n"] == 8
    alike = replace(examples, values=np.where(np.isnan(examples.values), np.nan, 1.0).astype(np.float32))
    assert make(section).measure(policy, alike, 60).keys() == {"validation_loss", "verdict_accuracy"}


@pytest.mark.slow
def test_two_processes_measure_from_one_step(tmp_path):
    """Ten steps of two processes end in one process's weights, and tell the same."""
    jobs = {"kto": (KTO, verdicts), "bco": (BCO, alone)}
    file = tmp_path / "jobs.json"
    listed = [{"folder": str(tmp_path / f"{n}-2"), "section": s, "examples": e.__name__} for n, (s, e) in jobs.items()]
    file.write_text(json.dumps(listed))
    told = ended(launch([str(Path(__file__).with_name("pairs_driver.py")), str(file)]))
    assert [code for code, *_ in told] == [0, 0], "\n".join(err for *_, err in told)
    for name, (section, examples) in jobs.items():
        with open_run(tmp_path / name) as run:
            loop = train(run, tiny_model(dtype=torch.float64), examples(), section, 10)
        found = load_file(tmp_path / f"{name}-2" / "weights.safetensors")
        for weight, wanted in loop.masters.masters.items():
            assert (found[weight] - wanted).abs().max() <= 1e-9, weight
        one, two = (steps(tmp_path / folder) for folder in (name, f"{name}-2"))
        for key in ("loss", "baseline", "rewards_margins", "logps_chosen"):
            np.testing.assert_allclose([e[key] for e in two], [e[key] for e in one], rtol=1e-5, atol=1e-6)
