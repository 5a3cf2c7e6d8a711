"""A run's folder: one writer, whole files, JSON that is JSON."""

import json
import subprocess
import sys

import pytest

from tunesmith import run
from tunesmith.errors import InputError

HOLDER = """
import pathlib, sys
from tunesmith.run import open_run
with open_run(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer_at_a_time_and_the_lock_dies_with_its_process(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is writing"), run.open_run(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()
    with run.open_run(tmp_path):
        pass


def test_the_lock_holds_within_one_process_too(tmp_path):
    with run.open_run(tmp_path), pytest.raises(InputError, match="another process is writing"), run.open_run(tmp_path):
        pass


def test_events_reach_file_and_listeners_and_hold_no_nan(tmp_path):
    heard = []
    with run.open_run(tmp_path, (heard.append,)) as opened:
        opened.emit("step", loss=float("nan"), nested={"a": [1.0, float("inf")]})
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert event == heard[0]
    assert (event["v"], event["loss"], event["nested"]) == (1, None, {"a": [1.0, None]})


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "state.json"
    run.write_json(file, {"state": "running"})
    monkeypatch.setattr(run.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        run.write_json(file, {"state": "done"})
    assert run.state(tmp_path) == "running"


def test_state_of_no_run_and_of_a_broken_file(tmp_path):
    assert run.state(tmp_path) is None
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json cannot be read"):
        run.state(tmp_path)


def test_the_environment_holds_no_environment_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = run.environment("cpu")
    assert found["packages"]["torch"]
    assert "hf_secret" not in json.dumps(found)


def test_a_run_seen_from_elsewhere_writes_nothing(tmp_path):
    seen = run.Elsewhere(tmp_path / "run")
    seen.emit("step", loss=1.0)
    seen.set_state("done")
    seen.close()
    assert list(tmp_path.iterdir()) == []
