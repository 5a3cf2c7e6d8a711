"""The demo end to end: short, that it works and shows what changed; whole (slow), that the starter learns what it is there to show."""

import functools
import io
import json

import pytest
from rich.console import Console

from tunesmith import demo, starter
from tunesmith.model.loading import STARTER
from tunesmith.starter import preferences

pytestmark = pytest.mark.skipif(
    not (STARTER / "model.safetensors").is_file(), reason="needs the starter's weights, which are not built here"
)


def test_a_short_demo_trains_measures_and_shows(tmp_path, monkeypatch):
    """Few rows and steps; run twice, it begins anew and leaves what else is in the folder alone."""
    monkeypatch.setattr(starter, "write_data", functools.partial(starter.write_data, n_train=60, n_heldout=10))
    monkeypatch.setattr(preferences, "write_preferences", functools.partial(preferences.write_preferences, n_train=60))
    monkeypatch.setattr(demo, "PAIRS", 12)
    monkeypatch.setattr(demo, "HELD_OUT", 10)
    train = {"max_steps": 3, "batch_size": 4, "evaluate_every": 3, "dtype": "float32"}
    for stage in ("SETTINGS", "PREFERENCES"):
        monkeypatch.setattr(demo, stage, {**getattr(demo, stage), "train": train})
    (tmp_path / "mine.txt").write_text("kept")
    demo.run_demo(str(tmp_path))
    result = demo.run_demo(str(tmp_path))
    assert result["steps"] == result["sft"]["steps"] == 3
    assert (tmp_path / "mine.txt").read_text() == "kept"
    shown = io.StringIO()
    demo.show_demo(result, Console(file=shown, width=200))
    held_out = [json.loads(line) for line in (tmp_path / "data" / "heldout.jsonl").read_text().splitlines()]
    for family in {row["category"] for row in held_out}:
        assert any(line.strip().startswith(family) for line in shown.getvalue().splitlines()), family
    assert held_out[0]["messages"][-2]["content"].splitlines()[0] in shown.getvalue()
    assert f"tunesmith chat {tmp_path}/dpo" in shown.getvalue()
    assert "win rate over the first stage, ties half         50%" in shown.getvalue()  # three steps change no answer


@pytest.mark.slow
def test_the_base_follows_no_instruction_and_the_demo_teaches_it(tmp_path):
    """Mean over the families on held-out instructions: below 10% before, at least 70% after; then the warm voice is preferred."""
    result = demo.run_demo(str(tmp_path))
    before = json.loads((tmp_path / "run" / "results.json").read_text())["before"]["metrics"]
    assert before["rule/families"]["n"] >= 8
    assert before["rule/families"]["value"] < 0.10
    assert result["sft"]["metrics"]["rule/families"]["value"] >= 0.70
    tuned = json.loads((tmp_path / "dpo" / "results.json").read_text())["before"]["metrics"]
    assert tuned["rule"]["value"] < 0.4  # of right and warm answers
    assert result["metrics"]["rule"]["value"] >= 0.6
    assert result["metrics"]["preference_accuracy"]["value"] >= 0.9
