"""What the trackers share: events wait in a queue, and a thread hands them on, so that no server ever holds up a step."""

import contextlib
import importlib.util
import json
import queue
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith import masking, registry, run
from tunesmith.errors import InputError

STEP = (
    "loss", "grad_norm", "learning_rate", "tokens_per_second", "memory_bytes", "epoch", "kl_to_base", "distance_to_base",
)  # fmt: skip
KEPT = 100_000  # points that wait for a server that is away; the oldest go first
RETRY = 30.0  # seconds between two attempts to reach it
LAST, PAUSE = 3, 1.0  # attempts at the end, and seconds between them
DRAIN = 30.0  # seconds at the end of a run for what is still waiting


@dataclass(frozen=True, slots=True)
class Begin:
    """What a tracker begins with. `id` is the run's at the tracker, kept in the run's folder; `fresh` says it is new.

    `step`: the step the run goes on from, 0 at its beginning. `config`: the resolved run file, flat, secrets masked.
    """

    folder: Path
    id: str
    fresh: bool
    step: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step, by name, and when they were measured (unix seconds)."""

    step: int
    time: float
    values: dict[str, float]


class Sink(Protocol):
    """An open run at a tracker: its `id` there, and `where` people find it. What fails raises; `send` is then tried again."""

    id: str
    where: str

    def send(self, points: Sequence[Point]) -> None: ...

    def end(self, state: str) -> None: ...


Start = Callable[[Begin], Sink]


def require(tracker: str, *modules: str) -> None:
    """InputError, with what to install, where a library is absent; imports nothing."""
    for name in modules:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name here, such as wandb's own, is no library
            raise InputError(f"{tracker} needs the package {name}: pip install 'tunesmith[{tracker}]'.")


def point(event: run.Event) -> Point | None:
    """Return the numbers of a step's or an evaluation's event, None where it has none."""
    values: dict[str, Any] = {}
    if event.get("event") == "step":
        values = {f"train/{key}": event.get(key) for key in STEP}
    elif event.get("event") == "evaluate":
        for name, metric in event["metrics"].items():
            values[f"eval/{name}"] = metric.get("value")
            values |= {f"eval/{name}/{end}": metric.get(end) for end in ("low", "high")}
    numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
    return Point(int(event["step"]), float(event["time"]), numbers) if numbers else None


class Feed:
    """A listener for a run's events that feeds one tracker. Its trouble is said once, as a notice, and never ends the run."""

    def __init__(
        self, name: str, start: Start, folder: Path, config: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self.name, self.start, self.folder, self.say = name, start, folder, say
        self.config = config
        self._queue: queue.SimpleQueue[run.Event | None] = queue.SimpleQueue()
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()  # the run's folder has one writing thread
        self._waiting: deque[Point] = deque(maxlen=KEPT)
        self._begin: Begin | None = None
        self._sink: Sink | None = None
        self._state = "failed"
        self._troubled = False
        self._thread = threading.Thread(target=self._work, name=f"tunesmith-{name}", daemon=True)
        self._thread.start()

    def __call__(self, event: run.Event) -> None:
        """Take one event; returns at once."""
        kind = event["event"]
        if kind == "inferred":
            self.config = {**self.config, **masking.flatten(event["value"], event["key"])}
        elif kind == "start":
            facts = {k: v for k, v in event.items() if k not in ("v", "time", "event") and v is not None}
            self._queue.put({**event, "config": {**self.config, **masking.flatten(facts, "start")}})
        elif kind in ("step", "evaluate", "end"):
            self._queue.put(event)
        if kind != "notice":  # which is what saying makes
            self._tell()

    def close(self) -> None:
        """Let no more come; what is waiting is still handed on."""
        self._queue.put(None)

    def join(self, seconds: float) -> None:
        """Wait for what is waiting to be handed on, for at most so many seconds."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._trouble(f"it has not taken everything {DRAIN:.0f} s after the end")
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.say(self._notices.get_nowait())

    def _trouble(self, reason: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._notices.put(f"the tracker {self.name} fails ({reason}); the run goes on, and events.jsonl has it all")

    def _work(self) -> None:
        closing, again = False, 0.0
        while not closing:
            closing = self._take(RETRY if self._troubled else None)
            if self._begin is not None and not closing and time.monotonic() >= again and not self._attempt(False):
                again = time.monotonic() + RETRY
        for _ in range(LAST if self._begin is not None else 0):
            if self._attempt(True):
                break
            time.sleep(PAUSE)

    def _attempt(self, closing: bool) -> bool:
        try:
            self._hand_on(closing)
        except Exception as e:  # libraries and servers raise what they like
            first = (str(e).strip().splitlines() or [""])[0]
            self._trouble(masking.clean(f"{type(e).__name__}: {first[:200]}".rstrip(": .")))
            return False
        return True

    def _take(self, timeout: float | None) -> bool:
        """Wait for an event, take all there are, and say whether the last one was."""
        try:
            event = self._queue.get(timeout=timeout)
            while event is not None:
                if event["event"] == "start":
                    kept = _kept(self.folder, self.name)
                    step = int(event.get("resumed_from") or 0)
                    self._begin = Begin(self.folder, kept or secrets.token_hex(4), kept is None, step, event["config"])
                elif event["event"] == "end":
                    self._state = str(event["state"])
                elif found := point(event):
                    self._waiting.append(found)
                event = self._queue.get_nowait()
            return True
        except queue.Empty:
            return False

    def _hand_on(self, closing: bool) -> None:
        assert self._begin is not None
        if self._sink is None:
            self._sink = self.start(self._begin)
            run.write_json(_place(self.folder, self.name), {"id": self._sink.id})
            self._notices.put(f"tracked by {self.name}: {masking.clean(self._sink.where)}")
        if self._waiting:
            points = list(self._waiting)
            self._sink.send(points)
            for _ in points:
                self._waiting.popleft()
        if closing:
            self._sink.end(self._state)


def _place(folder: Path, name: str) -> Path:
    return folder / "tracking" / f"{name}.json"


def _kept(folder: Path, name: str) -> str | None:
    """Return the id the run has at the tracker, None where it has none yet; makes the folder it is kept in."""
    place = _place(folder, name)
    place.parent.mkdir(exist_ok=True)
    try:
        return str(json.loads(place.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def following(opened: run.Run, trackers: Sequence[dict[str, Any]], config: dict[str, Any]) -> Iterator[None]:
    """Within it the trackers ({name, arguments} each) are fed from the run's events. `config` is the resolved run file."""
    flat, stdout = masking.flatten(config), sys.stdout
    feeds = [
        Feed(t["name"], _start(t), opened.folder, flat, lambda m: opened.emit("notice", message=m)) for t in trackers
    ]
    opened.listeners = (*opened.listeners, *feeds)
    try:
        yield
    finally:
        for feed in feeds:
            feed.close()
        last = time.monotonic() + DRAIN
        for feed in feeds:
            with contextlib.suppress(OSError):  # a full disk takes no notice; what ended the run is what must be told
                feed.join(last - time.monotonic())
        sys.stdout = stdout  # a library that hangs may hold it


def _start(tracker: dict[str, Any]) -> Start:
    module: Any = registry.load("tracking", tracker["name"])
    arguments = {k: v for k, v in tracker.items() if k != "name"}
    return lambda begin: module.start(begin, **arguments)
