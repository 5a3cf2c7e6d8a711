"""train.fused: false leaves every module its own forward, and the run comes out the same."""

import json

import pytest

from tunesmith.model import lora


def test_off_with_one_key(tunesmith_cli, tiny_folder, rows_file, tmp_path, monkeypatch):
    asked = []
    fuse = lora.fuse
    monkeypatch.setattr(lora, "fuse", lambda model: asked.append(model) or fuse(model))
    losses = []
    for fused in ("true", "false"):
        given = (
            "--model",
            tiny_folder,
            "--data",
            rows_file,
            "--adapter",
            "lora",
            "--output",
            tmp_path / fused,
            "--json",
        )
        keys = ("train.max_steps=4", "train.dtype=float32", "train.device=cpu", "optimizer.learning_rate=0.01")
        sets = [x for key in (*keys, f"train.fused={fused}") for x in ("--set", key)]
        code, out, err = tunesmith_cli("train", *given, *sets)
        assert code == 0, err
        losses.append(json.loads(out)["train_loss"])
        assert len(asked) == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
