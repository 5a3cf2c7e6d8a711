"""Whole runs on verdicts and ranked lists: from rows in a file, with weights inferred and said, and what cannot be learnt refused."""

import json
import math

import pytest

import tunesmith
from tunesmith.run_file import load_file

WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon", "tree"]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def verdict(i, label):
    said = [WORDS[i % 8], WORDS[(i // 8) % 8]]
    return {"prompt": f"{i} {' '.join(said)}", "completion": " ".join(said[::-1]) if label else "what?", "label": label}


def pair(i):
    good, bad = verdict(i, True), verdict(i, False)
    return {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """Train two steps of eight rows; return (metrics, its events, its resolved run file)."""

    def run(rows, objective, **train):
        config = {
            "model": str(tiny_folder), "data": written(tmp_path / "rows.jsonl", rows), "objective": objective,
            "adapter": {"name": "lora", "r": 4}, "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "train": {"max_steps": 2, "batch_size": 8, "microbatch_tokens": 200, "dtype": "float32", "device": "cpu", **train},
            "validation": {"fraction": 0.2},
        }  # fmt: skip
        events = []
        result = tunesmith.train(config, output=str(tmp_path / "run"), listeners=(events.append,))
        return result["metrics"], events, load_file(str(tmp_path / "run" / "run.yaml"))

    return run


def steps(events):
    return [e for e in events if e["event"] == "step"]


def notices(events):
    return [e["message"] for e in events if e["event"] == "notice"]


def test_kto_with_more_bad_than_good(trained):
    """10 good and 30 bad, a fifth held out by prompt: the good ones are weighed up, and that is in the run's file with its reason."""
    metrics, events, config = trained([verdict(i, i % 4 == 0) for i in range(40)], "kto")
    (weight,) = (e for e in events if e["event"] == "inferred" and e["key"].startswith("objective."))
    good, bad = (int(n) for n in weight["reason"].split()[:4:3])
    assert weight["key"] == "objective.desirable_weight"
    assert weight["value"] == config["objective"]["desirable_weight"] == pytest.approx(bad / good, abs=1e-3)
    assert {"rewards_chosen", "rewards_rejected", "baseline"} <= steps(events)[0].keys()
    assert steps(events)[0]["rewards_margins"] == pytest.approx(0.0, abs=1e-4)  # the reference is the start
    assert metrics["verdict_accuracy"]["n"] == 8
    assert all(math.isfinite(metrics[name]["value"]) for name in ("validation_loss", "reward_margin"))


@pytest.mark.parametrize("objective", ["kto", "bco", "apo_zero_unpaired"])
def test_preferences_become_verdicts(trained, objective):
    metrics, events, config = trained([pair(i) for i in range(20)], objective)
    assert any("its preferences are read as verdicts" in message for message in notices(events))
    assert not {"desirable_weight", "undesirable_weight"} & config["objective"].keys()  # they are balanced
    assert any("the reference" in message for message in notices(events))
    assert len(steps(events)) == 2
    assert metrics["verdict_accuracy"]["n"] == 8


def test_ranked_lists_of_different_lengths(trained):
    """Also of two answers, and of some that tie."""
    rows = [
        {
            "prompt": f"{i}",
            "responses": [*WORDS[: 2 + i % 3], "what?"],
            "scores": [float(-k) for k in range(2 + i % 3)] + [-9.0],
        }
        for i in range(20)
    ]
    rows[0]["scores"][1] = rows[0]["scores"][0]
    metrics, events, _ = trained(rows, {"name": "plackett_luce", "beta": 0.2}, batch_size=16)
    sizes = sorted(3 + i % 3 for i in range(20))
    assert math.log(2) < steps(events)[0]["loss"] < sum(map(math.log, range(2, sizes[-1] + 1)))
    assert metrics["preference_accuracy"]["n"] == 4


@pytest.mark.parametrize("objective", ["orpo", "cpo", "simpo"])
def test_no_reference_is_asked_where_there_is_none(trained, objective):
    """Where there is one, it is told (the runs above)."""
    metrics, events, _ = trained([pair(i) for i in range(20)], objective)
    assert not [m for m in notices(events) if "the reference" in m]
    assert metrics["preference_accuracy"]["n"] == 4


@pytest.fixture
def asked(refused, tiny_folder, tmp_path):
    def ask(rows, objective="kto", *more):
        file = written(tmp_path / "rows.jsonl", rows)
        return refused(
            "train",
            "--model",
            tiny_folder,
            "--data",
            file,
            "--objective",
            objective,
            "--output",
            tmp_path / "run",
            *more,
        )

    return ask


def test_one_label_is_refused(asked, tmp_path):
    said = asked([verdict(i, True) for i in range(10)])
    assert said.startswith(
        f"{tmp_path / 'rows.jsonl'}: all 9 training rows are labelled true (good), and kto learns from both; add bad"
    )
    assert not (tmp_path / "run").exists()


def test_one_label_is_refused_where_validation_took_the_other(asked):
    rows = [verdict(i, False) for i in range(10)]
    assert "all 10 training rows are labelled false (bad), and bco learns" in asked(
        rows, "bco", "--set", "validation=false"
    )


def test_one_prompt_is_refused_where_answers_are_mismatched(asked):
    rows = [{**verdict(i, i % 2 == 0), "prompt": "the same"} for i in range(10)]
    assert "take the objective bco or apo_zero_unpaired, which need none." in asked(rows)


def test_weights_below_zero_are_refused(asked):
    rows = [verdict(i, i % 2 == 0) for i in range(10)]
    assert "desirable_weight" in asked(rows, "kto", "--set", "objective.desirable_weight=-1")
