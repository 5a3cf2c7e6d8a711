"""The small programs under examples/ do what they say, on the built-in model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.model.loading import STARTER

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

needs_starter = pytest.mark.skipif(
    not (STARTER / "model.safetensors").is_file(), reason="needs the starter's weights, which are not built here"
)


def load(name: str):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_keeps_its_names_apart():
    finetune = load("finetune")
    assert not set(finetune.SEEN) & set(finetune.UNSEEN)


@needs_starter
def test_finetune_learns_and_answers(tmp_path):
    finetune = load("finetune")
    found = finetune.finetune("starter", tmp_path)
    before, after = found["before"]["perplexity"], found["after"]["perplexity"]
    assert before["n"] == after["n"] == len(finetune.UNSEEN) * len(finetune.TIMES)
    assert after["high"] < before["low"]
    assert found["after"]["exact_match"]["value"] >= found["before"]["exact_match"]["value"]
    assert found["answer"]
    # what the run measured of itself is what evaluate measures of its result, but for bf16
    assert found["train"]["metrics"]["perplexity"]["value"] == pytest.approx(after["value"], rel=0.05)
    assert (tmp_path / "run" / "report.html").is_file()


@needs_starter
def test_finetune_refuses_to_write_over_a_run(tmp_path):
    from tunesmith import InputError

    finetune = load("finetune")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("model: starter\n")
    with pytest.raises(InputError, match="holds a run"):
        finetune.finetune("starter", tmp_path)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_readable_loop_is_the_engine(adapter, tiny_folder, rows_file, tmp_path):
    """Ten steps over four epochs, the engine's micro-batches packed flat, the twin's padded: the same losses and weights."""
    import tunesmith

    peak = 1e-3
    settings = {
        "model": str(tiny_folder),
        "data": str(rows_file),
        "validation": False,
        "adapter": {"name": "full"} if adapter == "full" else {"name": "lora", "r": 4},
        "optimizer": {"learning_rate": peak},
        "train": {
            "max_steps": 10,
            "batch_size": 12,
            "warmup": 3,
            "dtype": "float32",
            "seed": 5,
            "microbatch_tokens": 300,
        },
        "output": str(tmp_path / "run"),
    }
    tunesmith.train(settings)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    steps = [e for e in events if e["event"] == "step"]

    loop = load("loop")
    model, _, losses = loop.train(
        str(tiny_folder), [str(rows_file)], 10, batch=12, micro=5, adapter=adapter, rank=4, peak=peak, warmup=3, seed=5
    )
    assert max(abs(a - e["loss"]) for a, e in zip(losses, steps, strict=True)) <= 1e-5
    assert abs(losses[0] - losses[-1]) > 1e-3  # it has moved
    assert [loop.rate(peak, i, 10, 3) for i in range(10)] == pytest.approx([e["learning_rate"] for e in steps])

    model.save_pretrained(tmp_path / "twin")
    name = "model.safetensors" if adapter == "full" else "adapter_model.safetensors"
    engine, twin = load_file(tmp_path / "run" / "result" / name), load_file(tmp_path / "twin" / name)
    assert engine.keys() == twin.keys()
    for key, weight in engine.items():
        torch.testing.assert_close(twin[key], weight, atol=1e-5, rtol=0)


def test_the_readable_loop_fits_in_one_sitting_and_runs_as_a_program(tiny_folder, rows_file, tmp_path):
    file = EXAMPLES / "loop.py"
    assert len(file.read_text().splitlines()) < 120
    command = [
        sys.executable,
        file,
        "--model",
        tiny_folder,
        "--data",
        rows_file,
        "--steps",
        "2",
        "--output",
        tmp_path / "t",
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["step 1/2", "step 2/2"]
    before, after = (load_file(f / "model.safetensors") for f in (tiny_folder, tmp_path / "t"))
    assert any(not torch.equal(before[key], after[key]) for key in after)
