"""What a run's folder holds, read for its report: every part may be missing, and a resumed run is joined up."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError


@dataclass
class RunRecord:
    """A run as its folder tells it. `steps` and `evaluations` are by step; a resumed run's void ones are gone."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    state: str = ""  # running, done, interrupted, failed, stopped (by a guard); empty when nothing says so
    start: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    began: float | None = None  # unix seconds of the first event
    inferred: dict[str, dict[str, Any]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, Any]] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)  # the steps at which the run was taken up again

    @property
    def last_step(self) -> int:
        return max(self.steps, default=0)


def number(value: object) -> float | None:
    """Return a finite float, or None for anything else (null, NaN, an infinity, a text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(folder: Path) -> RunRecord:
    """Return what the run's folder holds; a file that is missing leaves its part empty, a damaged one adds a notice.

    Raises InputError if the folder is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; name the folder that `tunesmith train` wrote.")
    run = RunRecord(folder)
    run.config = _read_mapping(folder / "run.yaml", run.notices)
    run.environment = _read_mapping(folder / "environment.json", run.notices)
    run.results = _read_mapping(folder / "results.json", run.notices)
    for event in _read_events(folder / "events.jsonl"):
        _take(run, event)
    state = _read_mapping(folder / "state.json", run.notices).get("state")
    run.state = str(run.end.get("state") or state or "")
    return run


def _read_mapping(path: Path, notices: list[str]) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        loaded = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, OSError, yaml.YAMLError):
        loaded = None
    if not isinstance(loaded, dict):
        notices.append(f"{path.name} is damaged and was left out of this report.")
        return {}
    return loaded


def _read_events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a run killed while writing leaves half a line
            if isinstance(event, dict):
                yield event


def _take(run: RunRecord, event: dict[str, Any]) -> None:
    """Add one event to the record."""
    if run.began is None:
        run.began = number(event.get("time"))
    name = event.get("event")
    step = event.get("step")
    if name == "start":
        _restart(run, event)
    elif name == "inferred":
        run.inferred[str(event.get("key"))] = event
    elif name == "notice":
        message = str(event.get("message", ""))
        if message and message not in run.notices:
            run.notices.append(message)
    elif name == "step" and isinstance(step, int):
        run.steps[step] = event
    elif name == "evaluate" and isinstance(step, int):
        run.evaluations[step] = event
    elif name == "end":
        run.end = event


def _restart(run: RunRecord, event: dict[str, Any]) -> None:
    """A start voids what came after the step it resumes from; one that resumes from nothing voids everything."""
    kept = event.get("resumed_from")
    if isinstance(kept, int):
        run.steps = {step: e for step, e in run.steps.items() if step <= kept}
        run.evaluations = {step: e for step, e in run.evaluations.items() if step <= kept}
        run.resumed = [step for step in run.resumed if step < kept] + [kept]
    else:
        run.steps, run.evaluations, run.resumed = {}, {}, []
    run.start, run.end = event, {}
