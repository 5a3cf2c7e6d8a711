"""Feeding a tracker: what it is sent, that it never holds up or ends a run, and that a resumed run goes on where it was."""

import importlib
import json
import threading
import time

import pytest

from tunesmith import run
from tunesmith.config import parse
from tunesmith.errors import InputError
from tunesmith.tracking import _feed
from tunesmith.tracking._feed import Point, following, point


class Fake:
    """A tracker that keeps what it is sent; `refuse` counts the calls that fail first, `gate` holds every call up."""

    def __init__(self, refuse=0, gate=None):
        self.refuse, self.gate = refuse, gate
        self.begun, self.points, self.states = [], [], []
        self.id, self.where = "x1", "http://user:pw@server/x1"

    def start(self, begin):
        self.begun.append(begin)
        return self

    def send(self, points):
        if self.gate is not None:
            self.gate.wait(20)
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError("http://user:pw@server is away\nand more")
        self.points += points

    def end(self, state):
        self.states.append(state)


def follow(monkeypatch, folder, fake, resumed_from=None, steps=(1, 2, 3), config=None):
    """A run of a few steps that `fake` follows; returns the notices."""
    monkeypatch.setattr(_feed, "_start", lambda tracker: fake.start)
    heard = []
    listening = lambda e: heard.append(e["message"]) if e["event"] == "notice" else None  # noqa: E731
    with run.open_run(folder, (listening,)) as opened, following(opened, [{"name": "fake"}], config or {"a": {"b": 1}}):
        opened.emit("inferred", key="train.seed", value=3, reason="why not")
        opened.emit("start", run=str(folder), model="m", steps=3, epochs=None, resumed_from=resumed_from)
        for step in steps:
            opened.emit(
                "step", step=step, loss=1 / step, grad_norm=None, learning_rate=0.5, scored_tokens=7, seconds=1.0
            )
        metrics = {"validation_loss": {"value": 2.0, "n": 4, "low": 1.5, "high": 2.5}}
        opened.emit("evaluate", step=steps[-1], metrics=metrics)
        opened.emit("end", state="done", step=steps[-1])
    return heard


def test_what_is_sent(monkeypatch, tmp_path):
    fake = Fake()
    notices = follow(monkeypatch, tmp_path / "r", fake)
    assert [(p.step, p.values) for p in fake.points] == [
        (1, {"train/loss": 1.0, "train/learning_rate": 0.5}),
        (2, {"train/loss": 0.5, "train/learning_rate": 0.5}),
        (3, {"train/loss": 1 / 3, "train/learning_rate": 0.5}),
        (3, {"eval/validation_loss": 2.0, "eval/validation_loss/low": 1.5, "eval/validation_loss/high": 2.5}),
    ]
    times = [json.loads(line)["time"] for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    assert {p.time for p in fake.points} <= set(times)
    assert fake.states == ["done"]
    (begin,) = fake.begun
    assert (begin.name, begin.step, begin.fresh) == ("r", 0, True)
    assert begin.config == {
        "a.b": 1,
        "train.seed": 3,
        "start.run": str(tmp_path / "r"),
        "start.model": "m",
        "start.steps": 3,
    }
    assert notices == ["tracked by fake: http://•••@server/x1"]


def test_a_run_that_ends_without_saying_so_has_failed(monkeypatch, tmp_path):
    fake = Fake()
    monkeypatch.setattr(_feed, "_start", lambda tracker: fake.start)
    with run.open_run(tmp_path / "r") as opened, following(opened, [{"name": "fake"}], {}):
        opened.emit("start", run="r")
    assert fake.states == ["failed"]


def test_a_resumed_run_goes_on_at_the_tracker(monkeypatch, tmp_path):
    follow(monkeypatch, tmp_path / "r", Fake())
    again = Fake()
    follow(monkeypatch, tmp_path / "r", again, resumed_from=2, steps=(3,))
    (begin,) = again.begun
    assert (begin.id, begin.fresh, begin.step) == ("x1", False, 2)


def test_a_server_away_is_said_once_and_gets_everything_later(monkeypatch, tmp_path):
    monkeypatch.setattr(_feed, "RETRY", 0.01)
    monkeypatch.setattr(_feed, "PAUSE", 0.01)
    fake = Fake(refuse=2)
    notices = follow(monkeypatch, tmp_path / "r", fake, steps=range(1, 200))
    failures = [n for n in notices if "fails" in n]
    (said,) = failures
    assert said.startswith("the tracker fake fails (ConnectionError: http://•••@server is away)")
    assert [p.step for p in fake.points] == [*range(1, 200), 199]
    assert fake.states == ["done"]


def test_a_server_that_stays_away_only_costs_its_notice(monkeypatch, tmp_path):
    monkeypatch.setattr(_feed, "PAUSE", 0.01)
    notices = follow(monkeypatch, tmp_path / "r", Fake(refuse=10**9))
    assert len([n for n in notices if "fails" in n]) == 1


def test_a_tracker_that_cannot_begin_is_a_notice_too(monkeypatch, tmp_path):
    monkeypatch.setattr(_feed, "PAUSE", 0.01)
    fake = Fake()
    fake.start = lambda begin: [][1]
    (said,) = follow(monkeypatch, tmp_path / "r", fake)
    assert "fails (IndexError: list index out of range); the run goes on" in said
    assert not (tmp_path / "r" / "tracking" / "fake.json").exists()


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(_feed, "DRAIN", 0.2)
    gate = threading.Event()
    began = time.perf_counter()
    notices = follow(monkeypatch, tmp_path / "r", Fake(gate=gate), steps=range(1, 1000))
    assert time.perf_counter() - began < 5
    assert "has not taken everything" in notices[-1]
    gate.set()


def test_events_without_numbers_are_no_points():
    assert point({"event": "checkpoint", "step": 3, "time": 1.0}) is None
    assert point({"event": "step", "step": 3, "time": 1.0, "loss": None}) is None
    assert point({"event": "step", "step": 3, "time": 1.0, "loss": 2}) == Point(3, 1.0, {"train/loss": 2.0})


@pytest.mark.parametrize(
    ("track", "sentence"),
    [
        (["tensorbord"], 'track[0].name: there is no tracker "tensorbord". Did you mean "tensorboard"?'),
        ([{"project": "x"}], "track[0] needs a name, one of mlflow, tensorboard, trackio, wandb."),
        ([3], "track[0] should be a mapping of keys, found 3."),
        (3, "track should be a list, found 3."),
    ],
)
def test_a_wrong_tracker_is_refused(track, sentence):
    with pytest.raises(InputError) as e:
        parse({"data": "x.jsonl", "track": track}, "run.yaml")
    assert str(e.value) == f"run.yaml: {sentence}"


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_an_absent_library_says_what_to_install(monkeypatch, name, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else found(n))
    with pytest.raises(InputError) as e:
        parse({"data": "x.jsonl", "track": name}, "run.yaml")
    assert str(e.value) == f"run.yaml: track[0]: {name} needs the package {package}: pip install 'tunesmith[{name}]'."


def test_arguments_are_checked_and_a_tracker_comes_once(monkeypatch):
    monkeypatch.setattr("tunesmith.tracking.mlflow.require", lambda *_: None)
    config = parse({"data": "x.jsonl", "track": [{"name": "mlflow", "experiment": "e"}]}, "run.yaml")
    assert config.track == [{"name": "mlflow", "experiment": "e"}]
    for track, words in (
        ([{"name": "mlflow", "experimnt": "e"}], 'track[0]: unknown key "experimnt". Did you mean "experiment"?'),
        ([{"name": "mlflow", "experiment": 3}], "track[0]: experiment should be text, found 3."),
        (["mlflow", "mlflow"], "track names mlflow twice"),
    ):
        with pytest.raises(InputError) as e:
            parse({"data": "x.jsonl", "track": track}, "run.yaml")
        assert words in str(e.value)
