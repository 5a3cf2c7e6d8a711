"""Taken up again after any step, from whole and from damaged checkpoints, a run ends with the same bits."""

import json
import shutil
import time

import pytest
from driver import config, content

import tunesmith
from tunesmith import run
from tunesmith.training import checkpoint, disk

FILES = ["trained", "optimizer", "random", "guard", "state.json", "manifest.json"]


@pytest.fixture(scope="module")
def every_step(material, tmp_path_factory):
    """kind -> the folder of a run of twelve steps over two epochs that kept the checkpoint of each."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in ("lora", "full"):
        tunesmith.train(config(material, kind, max_steps=12, keep_last=20), output=str(folder / kind))
    return folder


def cut_at(every_step, kind, step, folder):
    """Return a copy of the run as it was when step `step` had been saved and nothing since."""
    shutil.copytree(every_step / kind, folder)
    for path in checkpoint.listed(folder / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(folder / "result")
    (folder / "state.json").write_text('{"state": "running"}')
    return folder


@pytest.mark.parametrize(("kind", "step"), [*(("lora", n) for n in range(12)), ("full", 1), ("full", 5), ("full", 8)])
def test_resumed_at_any_step_of_two_epochs_it_is_bit_equal(train, every_step, tmp_path, kind, step):
    """With dropout, micro-batches smaller than the step, and a source of weight two: tensors of the last step, and the result."""
    folder = cut_at(every_step, kind, step, tmp_path / "run")
    heard = []
    train(kind, folder, resume=True, listeners=(heard.append,), max_steps=12, keep_last=20)
    assert next(e["resumed_from"] for e in heard if e["event"] == "start") == step
    epochs = [e["epoch"] for e in heard if e["event"] == "step"]
    assert epochs[-1] >= 2
    assert content(folder, 12) == content(every_step / kind, 12)
    assert len(content(folder, 12)) > 6


HARMS = [(name, harm) for name in FILES for harm in ("delete", "truncate", "flip")]
QUICK = {("trained", "flip"), ("random", "truncate"), ("manifest.json", "delete")}


@pytest.mark.parametrize(
    ("name", "harm"), [pytest.param(*h, marks=() if h in QUICK else pytest.mark.slow) for h in HARMS]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_resumed(train, every_step, tmp_path, name, harm):
    folder = cut_at(every_step, "lora", 11, tmp_path / "run")
    file = next((folder / "checkpoints" / "step-11").glob(f"{name}*"))
    kept = bytearray(file.read_bytes())
    file.unlink()
    if harm == "truncate":
        file.write_bytes(kept[:-7])
    elif harm == "flip":
        kept[len(kept) // 3] ^= 4
        file.write_bytes(kept)
    heard = []
    train("lora", folder, resume=True, listeners=(heard.append,), max_steps=12, keep_last=20)
    (said,) = [e["message"] for e in heard if e["event"] == "notice" and "damaged" in e["message"]]
    assert "step-11 is damaged and left aside" in said
    assert name in said or (name, harm) == ("manifest.json", "flip")
    assert next(e["resumed_from"] for e in heard if e["event"] == "start") == 10
    assert content(folder, 12) == content(every_step / "lora", 12)
    assert checkpoint.damage(folder / "checkpoints" / "step-11") is None


def test_a_damaged_best_checkpoint_is_said_and_is_no_result(train, tmp_path):
    """Early stopping goes back to the best checkpoint: damaged just before, it is named, and the last weights are the result."""
    heard, best = [], {}

    def listen(event):
        heard.append(event)
        if event["event"] == "evaluate":
            best[event["metrics"]["validation_loss"]["value"]] = event["step"]
        if event["event"] == "notice" and "stopped early" in event["message"]:
            file = tmp_path / "run" / "checkpoints" / f"step-{best[min(best)]}" / "trained.safetensors"
            file.write_bytes(file.read_bytes()[:-1])

    early = {"evaluate_every": 1, "early_stopping": 2, "max_steps": 12, "schedule": "constant", "warmup": 0}
    last = train("full", tmp_path / "run", listeners=(listen,), learning_rate=0.3, **early)["steps"]
    (said,) = [e["message"] for e in heard if e["event"] == "notice" and "damaged" in e["message"]]
    assert said.startswith(f"step {best[min(best)]}, the best by validation loss, is damaged (")
    assert "trained.safetensors does not have the checksum" in said
    assert said.endswith(f"; the result is step {last}")
    assert last == best[min(best)] + 2


def test_a_log_that_ends_in_half_a_line_goes_on_in_a_new_one(tmp_path):
    for before in ("", '{"event": "step"}\n', '{"event": "st'):
        (tmp_path / "events.jsonl").write_text(before)
        with run.open_run(tmp_path) as opened:
            opened.emit("start")
        *kept, last = (tmp_path / "events.jsonl").read_text().splitlines()
        assert kept == before.splitlines()
        assert json.loads(last)["event"] == "start"


def test_whatever_ends_the_loop_the_save_under_way_is_finished_first(train, tmp_path, monkeypatch):
    """Writing is slow, and a defect shows in the step after: the checkpoint is whole and told of before the end is."""
    heard = []

    def listen(event):
        heard.append(event)
        if event["event"] == "step" and event["step"] == 3:
            raise ZeroDivisionError("ours")

    monkeypatch.setattr(disk, "at", lambda what: time.sleep(0.02))
    with pytest.raises(ZeroDivisionError, match="ours"):
        train("lora", tmp_path / "run", listeners=(listen,))
    assert checkpoint.newest_whole(tmp_path / "run" / "checkpoints") == (tmp_path / "run/checkpoints/step-2", [])
    told = [(e["event"], e.get("step")) for e in heard]
    assert told.index(("step", 3)) < told.index(("checkpoint", 2)) < told.index(("end", 3))
