"""Each tracker that is installed here: what is written is read back, a resumed run goes on, and no secret is among it."""

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.tracking._feed import Begin, Point

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
CANARIES = ("CANARYenv0123456789", "CANARYurl", "hf_CANARYcanaryCANARY")


def begin(folder, step=0, fresh=True, id="abcd1234"):
    folder.mkdir(exist_ok=True)
    return Begin(folder, id, fresh, step, {"model.path": "starter", "train.seed": 3, "train.tags": ["a", "b"]})


def points(*steps, scale=1.0):
    return [Point(step, 1000.0 + step, {"train/loss": scale / step, "eval/rule/ä?/low": 0.25}) for step in steps]


def events_of(folder):
    """Every event in a folder of TensorBoard files, in the order TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # a record: length (8), its checksum (4), the event, its checksum (4)
            size = int.from_bytes(data[at : at + 8], "little")
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size


def scalars_of(folder):
    """{tag: {step: value}} as TensorBoard shows it: a START voids what earlier files hold from its step on."""
    found = {}
    for event in events_of(folder):
        if event.session_log.status == 1:
            found = {tag: {s: v for s, v in values.items() if s < event.step} for tag, values in found.items()}
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def texts_of(folder):
    values = [v for event in events_of(folder) for v in event.summary.value if v.WhichOneof("value") == "tensor"]
    return [(v.tag, v.tensor.string_val[0].decode()) for v in values]


def test_tensorboard_files_are_read_back_and_a_resumed_run_voids_the_steps_it_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    from tunesmith.tracking import tensorboard

    first = tensorboard.start(begin(tmp_path))
    first.send(points(1, 2, 3))  # and is killed
    second = tensorboard.start(begin(tmp_path, step=2, fresh=False))
    second.send(points(3, 4, scale=2.0))
    second.end("done")
    found = scalars_of(tmp_path / "tensorboard")
    assert set(found) == {"train/loss", "eval/rule/ä?/low"}
    assert found["train/loss"] == pytest.approx({1: 1.0, 2: 0.5, 3: 2 / 3, 4: 0.5})
    assert 1004.0 in [e.wall_time for e in events_of(tmp_path / "tensorboard") if e.step == 4]
    said = texts_of(tmp_path / "tensorboard")
    assert "<td>model.path</td><td>starter</td>" in said[0][1]
    assert said[-1] == ("state/text_summary", "done")


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return tmp_path / "store.db"


def test_mlflow_continues_a_run_and_keeps_its_state(mlflow_store, tmp_path):
    from mlflow.tracking import MlflowClient

    from tunesmith.tracking import mlflow

    first = mlflow.start(begin(tmp_path / "r"), experiment="e")
    first.send(points(1, 2))
    first.end("interrupted")
    client = MlflowClient()
    assert client.get_run(first.id).info.status == "KILLED"
    second = mlflow.start(begin(tmp_path / "r", step=2, fresh=False, id=first.id), experiment="e")
    assert client.get_run(first.id).info.status == "RUNNING"
    second.send(points(*range(3, 900)))  # more than one request holds
    second.end("done")
    run = client.get_run(first.id)
    assert (run.info.status, run.info.run_name, run.data.tags["state"]) == ("FINISHED", "r", "done")
    assert run.data.params == {"model.path": "starter", "train.seed": "3", "train.tags": "['a', 'b']"}
    losses = client.get_metric_history(first.id, "train/loss")
    assert {m.step: m.value for m in losses} == {step: 1 / step for step in range(1, 900)}
    assert losses[0].timestamp == 1001_000
    assert run.data.metrics["eval/rule/ä_/low"] == 0.25
    assert len(client.search_experiments(filter_string="name = 'e'")) == 1


def test_wandb_without_a_key_is_refused_before_anything(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "no"), "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    code = "from tunesmith.config import parse\nparse({'data': 'x', 'track': ['wandb']}, 'run.yaml')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "InputError: run.yaml: track[0]: wandb has no API key: run `wandb login`, or set WANDB_MODE" in done.stderr


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, tiny_folder, rows_file):
    """A run that all the installed trackers follow, with secrets in the environment, in an address and on the command line."""
    names = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    if not names:
        pytest.skip("no tracker is installed (pip install 'tunesmith[tensorboard]')")
    place = tmp_path_factory.mktemp("tracked")
    data = place / "https:" / "user:CANARYurl@host"  # a folder that reads as an address with a password
    data.mkdir(parents=True)
    (data / "rows.jsonl").write_text(rows_file.read_text())
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "TRACKIO"))} | {
        "WANDB_MODE": "offline", "TRACKIO_DIR": str(place / "trackio"), "MLFLOW_TRACKING_URI": f"sqlite:///{place}/m.db",
        "WANDB_API_KEY": CANARIES[0].ljust(40, "x"), "MLFLOW_TRACKING_PASSWORD": CANARIES[0], "HF_TOKEN": CANARIES[2],
        "AWS_SECRET_ACCESS_KEY": CANARIES[0], "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    settings = ["train.max_steps=4", "train.batch_size=4", "train.dtype=float32", f"track=[{','.join(names)}]"]
    command = [sys.executable, "-m", "tunesmith.cli", "train", "--model", tiny_folder, "--output", "run", "--json"]
    command += ["--data", "https://user:CANARYurl@host/rows.jsonl", *(x for s in settings for x in ("--set", s))]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) > {"run", "steps"}  # no library's word is on standard output
    return place, names


def test_every_tracker_has_the_numbers_of_the_events(tracked):
    place, names = tracked
    events = [json.loads(line) for line in (place / "run" / "events.jsonl").read_text().splitlines()]
    steps = {e["step"]: e for e in events if e["event"] == "step"}
    assert len(steps) == 4
    assert not [e for e in events if e["event"] == "notice" and "fails" in e["message"]]
    if "tensorboard" in names:
        found = scalars_of(place / "run" / "tensorboard")
        for key in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "memory_bytes"):
            assert found[f"train/{key}"] == pytest.approx({s: e[key] for s, e in steps.items()}, rel=1e-6)  # float32
    if "mlflow" in names:
        with contextlib.closing(sqlite3.connect(place / "m.db")) as db:
            rows = db.execute("select step, value from metrics where key = 'train/loss'").fetchall()
            assert dict(rows) == {s: e["loss"] for s, e in steps.items()}
            assert db.execute("select status from runs").fetchall() == [("FINISHED",)]
    if "trackio" in names:
        with contextlib.closing(sqlite3.connect(place / "trackio" / "tunesmith.db")) as db:
            rows = [(s, json.loads(m)) for s, m in db.execute("select step, metrics from metrics").fetchall()]
        assert {s: m["train/loss"] for s, m in rows if "train/loss" in m} == {s: e["loss"] for s, e in steps.items()}
        assert [m["state"] for _, m in rows if "state" in m] == ["done"]
    if "wandb" in names:
        (file,) = (place / "run" / "wandb").glob("offline-run-*/run-*.wandb")
        written = file.read_bytes()
        for e in steps.values():
            assert repr(e["learning_rate"]).encode() in written


def test_no_secret_is_in_anything_a_tracker_writes(tracked):
    place, names = tracked
    written = [place / "run" / name for name in ("tracking", "tensorboard", "wandb", "report.html")]
    written += [place / "m.db", place / "trackio"]
    files = [f for path in written for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()]
    assert len(files) >= len(names)
    for file in files:
        content = file.read_bytes()
        for canary in CANARIES:
            assert canary.encode() not in content, file
    if "mlflow" in names:
        with contextlib.closing(sqlite3.connect(place / "m.db")) as db:
            params = dict(db.execute("select key, value from params").fetchall())
        assert params["data.0.path"] == "https://•••@host/rows.jsonl"
        assert Path(params["start.model"]).name == "tiny"
