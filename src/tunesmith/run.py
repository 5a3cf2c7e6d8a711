"""A run's folder: who writes it, what happened in it, and where things lie."""

import contextlib
import fcntl
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.training import disk

EVENTS_VERSION = 1
BEGUN = ("lock", "events.jsonl", ".run.yaml.part")  # what a run leaves that ended before it began
Event = dict[str, Any]
Listener = Callable[[Event], None]


class Run:
    """An open run folder. One writer at a time: the lock dies with the process that holds it."""

    def __init__(self, folder: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.folder = folder
        self.listeners = listeners
        path = folder / "events.jsonl"
        with path.open("ab+") as f:
            if f.tell():
                f.seek(-1, os.SEEK_END)
                if f.read() != b"\n":  # a run that was killed, or whose disk was full, left half a line
                    f.write(b"\n")
        self._events = path.open("a", encoding="utf-8")

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event to events.jsonl and tell the listeners."""
        line: Event = {"v": EVENTS_VERSION, "time": round(time.time(), 3), "event": event, **finite(fields)}
        self._events.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._events.flush()
        for listener in self.listeners:
            listener(line)

    def set_state(self, state: str, **fields: Any) -> None:
        """Write state.json: running, done, failed, interrupted or stopped (by a guard)."""
        write_json(self.folder / "state.json", {"state": state, **fields})

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that did not fit on the disk has been told of
            self._events.close()


class Elsewhere(Run):
    """A run as seen by a process that does not write its folder: another of the same run does. Nothing is written or told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listeners = folder, ()

    def emit(self, event: str, **fields: Any) -> None: ...

    def set_state(self, state: str, **fields: Any) -> None: ...

    def close(self) -> None: ...


def state(folder: Path) -> str | None:
    """Return the state a run's folder is in, None where it is no run's folder."""
    file = folder / "state.json"
    try:
        return str(json.loads(file.read_text())["state"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{file} cannot be read, though tunesmith writes it whole; is {folder} a run's folder?") from e


def used(folder: Path) -> bool:
    """Return whether a folder holds anything but what a run leaves that ended before it began."""
    return folder.is_dir() and any(p.name not in BEGUN for p in folder.iterdir())


def refuse_used(folder: Path) -> None:
    """InputError where a folder is `used`, so that no new run can have it."""
    if not used(folder):
        return
    if (folder / "run.yaml").is_file():
        raise InputError(
            f"the output folder {folder} holds a run; continue it with --resume or choose another --output."
        )
    raise InputError(f"the output folder {folder} is not empty and holds no run; choose another --output.")


@contextlib.contextmanager
def open_run(folder: Path, listeners: tuple[Listener, ...] = ()) -> Iterator[Run]:
    """Lock the folder and open its events; InputError where another process writes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as e:
        raise InputError(f"the output folder {folder} cannot be written: {e.strerror}.") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise InputError(f"another process is writing {folder}; wait for it or choose another --output.") from e
        run = Run(folder, listeners)
        try:
            yield run
        finally:
            run.close()


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside, sync, rename: the file is always whole."""
    write_bytes(path, (json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Return the value with None for every float that is no finite number, which JSON cannot say."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside, sync it and rename it over `path`."""
    beside = path.with_name(f".{path.name}.part")
    disk.write(beside, [content])
    disk.rename(beside, path)


def environment(device: str) -> dict[str, Any]:
    """Return what the run ran on: versions, processor, memory, device. No environment variable is among it."""
    import psutil

    wanted = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy")
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "tunesmith": metadata.version("tunesmith"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
        "packages": {name: metadata.version(name) for name in wanted},
    }
