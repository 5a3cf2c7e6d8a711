"""The small programs under examples/ do what they say, on the built-in model."""

import importlib.util
from pathlib import Path

import pytest

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
