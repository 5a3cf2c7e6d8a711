"""Bad run files, settings and outputs: exit code 2, one sentence with the place and the remedy, before any weight is loaded."""

import os
from pathlib import Path

import pytest

ROW = '{"instruction": "red cat", "output": "cat red"}'


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"modell": "x"}, 'run.yaml: unknown key "modell". Did you mean "model"?'),
        ({"model": {"path": "x", "quantise": 1}}, 'unknown key "model.quantise"'),
        ({"data": [{"path": "data.jsonl", "wieght": 2}]}, 'data has the unknown key "wieght". Did you mean "weight"?'),
        ({"data": {"path": "data.jsonl", "weight": "heavy"}}, "\"weight\" is 'heavy', expected a number"),
        ({"data": {"path": "data.jsonl", "format": "alpacca"}}, 'there is no format "alpacca". Did you mean "alpaca"?'),
        ({"data": {"path": "data.jsonl", "columns": {"promt": "x"}}}, 'columns names "promt"'),
        ({"data": {"path": "data.jsonl", "columns": {"prompt": "x"}}}, 'column "x" (named in columns) is missing'),
        ({"data": {"path": "data.jsonl", "format": ["text"]}}, "there is no format \"['text']\"."),
        ({"data": []}, "there is no data to train on"),
        ({"data": {"path": "data.jsonl", "cap": "few"}}, "\"cap\" is 'few', expected a whole number of rows above 0."),
        ({"data": {"path": "data.jsonl", "objective": "dpoo"}}, 'data (data.jsonl): there is no objective "dpoo".'),
        ({"data": {"path": "data.jsonl", "general": 1}}, '"general" is 1, expected true or false.'),
        ({"data": {"path": "data.jsonl", "general": True}}, "data is marked general; say with mixing.general_share"),
        ({"prepare": {"qality": True}}, 'run.yaml: prepare: there is no step "qality". Did you mean "quality"?'),
        ({"prepare": ["quality"]}, "run.yaml: prepare should be a mapping of keys, found ['quality']."),
        ({"prepare": {"split": {"folds": 3}}}, "run.yaml: prepare.split.folds makes sets for cross-validation"),
        ({"mixing": {"temprature": 2}}, 'mixing: unknown key "temprature". Did you mean "temperature"?'),
        (
            {"mixing": {"weight": 2}},
            "run.yaml: mixing.weight is said of each set: data: [{path: rows.jsonl, weight: ...}].",
        ),
        ({"validation": 0.1}, "run.yaml: validation is 0.1; say validation: {fraction: 0.1}."),
        (
            {"validation": {"path": "data.jsonl", "as": "chats"}},
            "validation: as should be one of text, chat, preference, verdict, prompt, found 'chats'. Did you mean \"chat\"?",
        ),
        ({"mixing": {"temperature": 0}}, "mixing: temperature should be greater than or equal to 1, found 0."),
        ({"mixing": {"general_share": "much"}}, "mixing: general_share should be a number, found 'much'."),
        ({"mixing": {"curriculum": "hard"}}, "mixing: curriculum should be one of length, score, found 'hard'."),
        (
            {"mixing": {"curriculum": "score", "score_field": "hard"}},
            'data.jsonl, row 1: field "hard", which mixing.score_field names, is missing',
        ),
        ({"validation": {"fraction": 1.5}}, "validation: fraction should be less than 1, found 1.5."),
        ({"validation": {"fractoin": 0.5}}, 'validation: unknown key "fractoin". Did you mean "fraction"?'),
        ({"validation": {"path": []}}, "validation: path should be text, found []."),
        ({"validation": {"path": "none.jsonl"}}, "there is no data file none.jsonl"),
        ({"objective": "dpoo"}, 'there is no objective "dpoo". Did you mean "dpo"?'),
        ({"objective": {"name": "sft", "beta": 1}}, 'objective: unknown key "beta".'),
        ({"adapter": "lorra"}, 'there is no adapter "lorra". Did you mean "lora"?'),
        ({"adapter": {"name": "lora", "r": 0}}, "adapter: r should be greater than 0, found 0."),
        (
            {"adapter": {"name": "lora", "r": 10**11}},
            "adapter: r should be less than or equal to 8192, found 100000000000.",
        ),
        (
            {"adapter": {"name": "lora", "target_modules": ["q_porj"]}},
            "matches nothing in this model; its linear layers are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj.",
        ),
        ({"adapter": {"name": "lora", "target_modules": "["}}, "adapter.target_modules '['"),
        ({"adapter": {"name": "lora", "target_modules": []}}, "adapter.target_modules [] matches nothing"),
        ({"adapter": {"from": "nowhere"}}, "nowhere"),
        ({"optimizer": "sgdd"}, 'there is no optimizer "sgdd". Did you mean "sgd"?'),
        ({"optimizer": {"lr": 1}}, 'optimizer: unknown key "lr".'),
        ({"optimizer": {"learning_rate": -1}}, "optimizer: learning_rate should be greater than 0, found -1."),
        ({"optimizer": {"betas": [0.9]}}, "optimizer: betas[1] is missing."),
        ({"optimizer": {"betas": [0.9, 2]}}, "optimizer: betas[1] should be less than 1, found 2."),
        (
            {"optimizer": {"betas": [0.9, 0.9, 0.9]}},
            "optimizer: betas should be a shorter list, found [0.9, 0.9, 0.9].",
        ),
        ({"train": {"epoch": 1}}, 'unknown key "train.epoch". Did you mean "epochs"?'),
        ({"train": {"max_steps": 10**30}}, "train.max_steps"),
        ({"train": {"epochs": 1e300}}, "train.epochs should be less than or equal to 100000, found 1e+300."),
        ({"train": {"seed": 2**64}}, "train.seed should be less than 9223372036854775808"),
        ({"train": {"max_length": 10**9}}, "train.max_length 1000000000 is beyond the model's context of 256"),
        ({"train": {"device": "gpu"}}, "train.device should be one of cpu, cuda, mps, found 'gpu'."),
        ({"train": {"dtype": "int4"}}, "train.dtype should be one of"),
        ({"evaluate": ["blue"]}, 'there is no metric "blue"'),
        ({"evaluate": [{"name": "perplexity", "n": 1}]}, 'evaluate[0]: unknown key "n".'),
        ({"track": ["tensorbored"]}, 'there is no tracker "tensorbored". Did you mean "tensorboard"?'),
        ({"output": ["x"]}, "output should be text, found ['x']."),
        ({"output": ""}, "run.yaml: output should be text that is not empty, found ''."),
    ],
)
def test_keys_and_values_of_every_section(rejected, run, words):
    said = rejected(**run)
    assert words in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "run.yaml: a run file is a mapping of sections"),
        ("- a\n- b", "not a list"),
        ("just text", "not text"),
        ("model: [", "run.yaml, line 1: this is no YAML"),
        ("model: x\n\tdata: y", "run.yaml, line 2: this is no YAML"),
        ("model: !!python/object/apply:os.system ['touch canary']", "this is no YAML for a run file"),
        ("model: &a [*a]", "run.yaml"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nmodel: [*b,*b]", 'unknown key "a"'),
        (
            "model: x\nmodel: y\ndata: z",
            'run.yaml, line 2: this is no YAML for a run file (the key "model" is given twice)',
        ),
        ("? [a, b]\n: c", "run.yaml"),
        ("train: {epochs: 2024-01-01}", "train.epochs should be a number, found datetime.date(2024, 1, 1)."),
        ("train: {epochs: .inf}", "train.epochs should be a finite number, found inf."),
        ("train: {seed: 0x10000000000000000000}", "train.seed"),
    ],
)
def test_run_files(refused, content, words):
    Path("data.jsonl").write_text(ROW)
    Path("run.yaml").write_text(content)
    assert words in refused("train", "run.yaml")
    assert not Path("canary").exists()


def test_run_files_that_are_none(refused):
    Path("utf16.yaml").write_bytes("model: x".encode("utf-16"))
    assert "utf16.yaml" in refused("train", "utf16.yaml")
    Path("bytes.yaml").write_bytes(b"model: \xff\xfe\x00")
    assert "bytes.yaml: this is no YAML for a run file (not UTF-8 text)" in refused("train", "bytes.yaml")
    Path("deep.yaml").write_text("[" * 5000)
    assert "deep.yaml" in refused("train", "deep.yaml")
    Path("folder").mkdir()
    assert "there is no run file folder" in refused("train", "folder")
    os.mkfifo("pipe.yaml")
    assert "there is no run file pipe.yaml" in refused("train", "pipe.yaml")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train", "--set takes section.key=value"),
        ("=3", "--set takes section.key=value"),
        ("train.=3", 'unknown key "train."'),
        (".x=3", 'unknown key ""'),
        ("train..epochs=3", 'unknown key "train."'),
        ("data.0.path=x", "data is a list"),
        ("train.epochs=[", "is no YAML value"),
        ("train.epochs.x=3", "train.epochs should be a number"),
    ],
)
def test_settings_on_the_command_line(rejected, setting, words):
    assert words in rejected(flags=["--set", setting])


def test_outputs(rejected, tmp_path):
    Path("file").write_text("x")
    assert "the output file is a file; a run needs a folder of its own" in rejected(flags=["--output", "file"])
    assert "file is a file." in rejected(flags=["--output", "file/run"])
    assert "/proc/tunesmith/run cannot be written in /proc: " in rejected(flags=["--output", "/proc/tunesmith/run"])
    assert f"{'x' * 300} cannot be used: file name too long" in rejected(flags=["--output", "x" * 300])
    Path("full").mkdir()
    Path("full/notes.txt").write_text("x")
    assert "full is not empty and holds no run; choose another --output" in rejected(flags=["--output", "full"])
    Path("full/run.yaml").write_text("model: x")
    assert "full holds a run; continue it with --resume or choose another --output" in rejected(
        flags=["--output", "full"]
    )
    Path("loop").symlink_to("loop")
    assert "loop" in rejected(flags=["--output", "loop"])


def test_resuming_what_is_none(rejected):
    assert "--resume needs to know the run" in rejected(flags=["--resume"])
    Path("full").mkdir()
    Path("full/notes.txt").write_text("x")
    Path("data.jsonl").touch()
    assert "there is no run nowhere to resume, and no data to begin it with" in rejected(
        flags=["--resume", "--output", "nowhere"], data=[]
    )
    Path("done").mkdir()
    Path("done/state.json").write_text('{"state": "done"}')
    Path("done/run.yaml").write_text("model: starter\ndata: data.jsonl\noutput: done")
    assert "done is finished, but its results.json cannot be read" in rejected(
        folder="starter", flags=["--resume", "--output", "done"]
    )
    assert "full holds no run to resume" in rejected(flags=["--resume", "--output", "full"])
