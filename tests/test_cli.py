"""The command line's contract: exit codes, one sentence on standard error, one JSON object on standard output."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tunesmith import run
from tunesmith.training import measure

QUICK = ("--set", "train.max_steps=4", "--set", "train.batch_size=4", "--set", "train.dtype=float32")
METRIC = {"value", "n", "low", "high"}


@pytest.fixture
def good(tiny_folder, rows_file, tmp_path):
    """The arguments of a run that works."""
    return ["train", "--model", tiny_folder, "--data", rows_file, "--output", tmp_path / "run", *QUICK]


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["train"],
        ["demo"],
        ["evaluate"],
        ["generate"],
        ["chat"],
        ["merge"],
        ["data"],
        ["data", "inspect"],
        ["data", "show"],
    ],
)
def test_help_is_plain_and_for_people(tunesmith_cli, verb):
    code, out, err = tunesmith_cli(*verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: tunesmith")
    assert not any(line.endswith("...") for line in out.splitlines()[1:])  # every verb's line is whole
    assert all(len(line) <= 100 for line in out.splitlines())


HELP = """
import sys
from tunesmith import cli
sys.argv = ["tunesmith", "train", "--help"]
try:
    cli.main()
except SystemExit:
    print([m for m in ("torch", "transformers", "numpy", "rich", "datasets") if m in sys.modules])
"""


def test_help_imports_nothing_heavy():
    """0.3 s are the contract; a busy machine is allowed a second, the imports are not."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - began < 1.5


def test_train_json_is_one_object_of_the_contract_s_shape(tunesmith_cli, good, tmp_path):
    code, out, err = tunesmith_cli(*good, "--set", "evaluate=[exact_match]", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert set(result) == {
        "run", "steps", "tokens", "scored_tokens", "seconds", "tokens_per_second", "train_loss", "metrics",
        "peak_memory_bytes", "result",
    }  # fmt: skip
    assert result["steps"] == 4
    assert {"validation_loss", "perplexity", "exact_match"} <= set(result["metrics"])
    assert all(set(m) == METRIC for m in result["metrics"].values())
    assert "optimizer.learning_rate" in err  # what was inferred is said, with its reason
    assert (tmp_path / "run" / "report.html").is_file()
    code, out, err = tunesmith_cli(*good, "--set", "evaluate=[exact_match]", "--resume", "--json")
    assert (code, json.loads(out)) == (0, result)
    assert "is finished: nothing is left to resume" in err


def test_the_other_verbs_json(tunesmith_cli, tiny_folder, rows_file):
    code, out, err = tunesmith_cli("evaluate", tiny_folder, "--data", rows_file, "--metric", "perplexity", "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"metrics"}
    assert set(json.loads(out)["metrics"]["perplexity"]) == METRIC
    code, out, err = tunesmith_cli("generate", tiny_folder, "--prompt", "red", "--max-new-tokens", "3", "--json")
    assert code == 0, err
    assert json.loads(out)["answers"][0]["prompt"] == "red"
    code, out, err = tunesmith_cli("data", "inspect", rows_file, "--model", tiny_folder, "--json")
    assert code == 0, err
    (source,) = json.loads(out)["sources"]
    assert (source["format"], source["rows"], source["problems"]) == ("alpaca", 40, [])
    code, out, err = tunesmith_cli("data", "show", rows_file, "--model", tiny_folder, "-n", "1")
    assert code == 0, err
    assert "assistant" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file is empty"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": ', "row 2: line 2 is broken JSON"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a"}', 'row 2: field "output" is missing'),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": null}', 'row 2: field "output" is null'),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 3}', 'row 2: field "output" is a number'),
        ('{"instruction": "a", "output": "b"}\n{"text": "a"}', "row 2: this row is of the format text"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "nothing would be scored"),
    ],
)
def test_wrong_data_is_one_sentence(refused, tiny_folder, tmp_path, content, words):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    said = refused("train", "--model", tiny_folder, "--data", file, "--output", tmp_path / "run")
    assert f"{file}" in said
    assert words in said
    assert not (tmp_path / "run").exists()
    if "scored" not in words:
        assert words in refused("evaluate", tiny_folder, "--data", file)
        assert words in refused("generate", tiny_folder, "--data", file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "--modl", "x"], "--modl"),
        (["train"], "there is no data to train on"),
        (["train", "rn.yaml"], 'there is no run file rn.yaml. Did you mean "run.yaml"?'),
        (["train", "--data", "rowz.jsonl"], 'there is no data file rowz.jsonl. Did you mean "rows.jsonl"?'),
        (["train", "--data", "rows.jsonl", "--model", "./modle"], 'no model folder ./modle. Did you mean "model"?'),
        (["train", "--data", "rows.jsonl", "--model", "nobody/nothing"], '"nobody/nothing" is no local folder'),
        (["train", "--data", "rows.jsonl", "--model", "model", "--set", "train"], "--set takes section.key=value"),
        (["train", "--resume"], "--resume needs to know the run"),
        (["evaluate", "model"], "--data"),
        (["evaluate", "model", "--data", "rows.jsonl", "--metric", "perplexit"], 'Did you mean "perplexity"?'),
        (["evaluate", "model", "--data", "rows.jsonl", "--adapter", "rows.jsonl"], "adapter_config.json"),
        (["generate", "model"], "either a prompt or data"),
        (["generate", "model", "--prompt", "x" * 600], "the model's context is 256"),
        (["generate", "model", "--prompt", "x", "--top-p", "2"], "--top-p"),
        (["chat", "./modle"], 'Did you mean "model"?'),
        (["data", "inspect", "rowz.jsonl"], 'Did you mean "rows.jsonl"?'),
        (["data", "show", "rows.jsonl", "--model", "./modle"], 'Did you mean "model"?'),
    ],
)
def test_wrong_arguments_are_one_sentence(refused, tiny_folder, rows_file, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.copy(rows_file, tmp_path / "rows.jsonl")
    (tmp_path / "run.yaml").write_text("model: model")
    assert words in refused(*arguments)


def test_a_mistake_is_told_within_seconds_of_a_cold_start(tmp_path, tiny_folder):
    began = time.perf_counter()
    command = [sys.executable, "-m", "tunesmith.cli", "train", "--model", tiny_folder, "--data", "nofile.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "tunesmith: there is no data file nofile.jsonl.\n"
    assert time.perf_counter() - began < 5


def test_our_own_defect_is_exit_1_and_one_sentence(tunesmith_cli, good, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "before", lambda *_: [][1])
    code, out, err = tunesmith_cli(*good)
    assert (code, out) == (1, "")
    file = tmp_path / "run" / "traceback.txt"
    assert err.splitlines()[-1].startswith("tunesmith: a defect of tunesmith: IndexError: list index out of range")
    assert str(file) in err.splitlines()[-1]
    assert "Traceback (most recent call last)" not in err
    assert "IndexError" in file.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_the_steps_leaves_a_run_that_resumes(tunesmith_cli, good, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(measure, "before", lambda *_: signal.raise_signal(number))
    ended, out, err = tunesmith_cli(*good)
    assert (ended, out) == (code, "")
    assert err.splitlines()[-1].startswith("tunesmith: interrupted")
    assert run.state(tmp_path / "run") == "interrupted"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [])
    ended, _, err = tunesmith_cli(*good, "--resume")
    assert ended == 0, err
    assert run.state(tmp_path / "run") == "done"


def test_a_guard_is_exit_3(tunesmith_cli, good, tmp_path):
    code, _, err = tunesmith_cli(*good, "--set", "optimizer.learning_rate=1e30")
    assert code == 3, err
    assert "training diverged at learning rate 1e+30" in err.splitlines()[-1]
    assert "the last good state is kept as checkpoints/step-0" in err.splitlines()[-1]
    assert run.state(tmp_path / "run") == "stopped"
