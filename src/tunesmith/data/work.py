"""The folder a set is prepared in, beside the one it goes to: locked, its state kept after every step, swapped in whole."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tunesmith.errors import InputError
from tunesmith.training import disk

OURS = ("card.json", "card.html", "recipe.yaml", "lineage.parquet")  # what a prepared set holds beside its rows
MOST_BYTES = 20 * 10**9  # of the sets in the user's cache
Arrays = Mapping[str, npt.NDArray[Any]]


def beside(output: Path) -> Path:
    """Return the work folder of an output folder."""
    return output.with_name(f"{output.name}.partial")


@contextlib.contextmanager
def opened(output: Path, wait: bool = False) -> Iterator[Path]:
    """Make and lock the work folder; InputError where it cannot be made, or, unless we `wait`, another process works there."""
    folder = beside(output)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"the output folder {output} cannot be written: {reason}.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"another process is preparing {output}; wait for it or choose another --output."
                ) from error
            if not _is(folder / "lock", lock):
                continue  # it was done, and removed its folder, as we came
            recover(output)
            yield folder
            return


def _is(path: Path, file: IO[str]) -> bool:
    """Return whether an open file is (still) the one at a path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def is_prepared(folder: Path) -> bool:
    """Say whether a folder is a prepared set, whole."""
    return (folder / "card.json").is_file() and (folder / "recipe.yaml").is_file()


def of_prepared(folder: Path) -> bool:
    """Say whether a folder is a prepared set, or a part of one."""
    place = folder.expanduser()
    return place.is_dir() and any(is_prepared(p) for p in (place, *place.absolute().parents[:3]))


def own_validation(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entry of `data` that reads the rows which a prepared set (or a part of one) holds out of training.

    None where `entry` is no prepared set, or it holds none out.
    """
    folder = Path(entry["path"]).expanduser()
    if not of_prepared(folder):
        return None
    return {**entry, "split": "validation"} if any(folder.rglob("validation.jsonl")) else None


def recover(output: Path) -> None:
    """Bring back the set that a process had moved away when it was killed before it put the new one in its place."""
    kept = beside(output) / "previous"
    if kept.exists() and not output.exists():
        kept.rename(output)


def swap_in(output: Path) -> None:
    """Put the work folder's whole `output` in the place of the output folder, and remove the work folder."""
    folder = beside(output)
    disk.sync(folder / "output")
    if output.exists() and any(output.iterdir()):
        shutil.rmtree(folder / "previous", ignore_errors=True)
        disk.at("rename previous")
        output.rename(folder / "previous")
    disk.at(f"rename {output.name}")
    (folder / "output").rename(output)
    disk.sync(output.parent)
    discard(folder)


def damaged(output: Path, files: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first of the files that is missing or not as its hash says, None where all are whole."""
    for file in files:
        try:
            with (output / file["path"]).open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != file["sha256"]:
                    return str(file["path"])
        except OSError:
            return str(file["path"])
    return next((name for name in OURS if not (output / name).is_file()), None)


def check_ours(output: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """InputError where a folder that is to be replaced holds what is not of its set."""
    ours = {output / file["path"] for file in files} | {output / name for name in OURS}
    other = next((p for p in sorted(output.rglob("*")) if p.is_file() and p not in ours), None)
    if other is not None:
        raise InputError(
            f"{output} is not replaced, for {other} is no file of its set; move it, or choose another --output."
        )


def empty(folder: Path) -> None:
    """Remove all from a work folder but its lock, its state first."""
    for name in ("steps", "read"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def prune(kept: Path) -> None:
    """Remove the prepared sets beside `kept` that were used longest ago, where all take more than 20 GB or a tenth of the disk.

    Those used within a day stay: a run may be reading them. What was left half made a day ago goes too.
    """
    day_ago = time.time() - 86_400
    for path in kept.parent.glob("*.partial"):
        if path.stat().st_mtime < day_ago:
            with contextlib.suppress(OSError), (path / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where one works in it still
                shutil.rmtree(path, ignore_errors=True)
    most = min(MOST_BYTES, shutil.disk_usage(kept.parent).total // 10)
    sets = sorted((p for p in kept.parent.iterdir() if is_prepared(p)), key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in sets}
    total = sum(sizes.values())
    for path in sets:
        if total > most and path != kept and path.stat().st_mtime < day_ago:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]


def discard(folder: Path) -> None:
    """Remove a work folder, its state first: what is left by a kill in between is not taken for work to go on with."""
    empty(folder)
    disk.at("remove work")
    shutil.rmtree(folder, ignore_errors=True)


def keep(path: Path, facts: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a state beside, sync, rename: JSON facts, then arrays as they lie in memory. It holds no code."""
    shapes = [[name, a.dtype.str, len(a)] for name, a in arrays.items()]
    head = json.dumps({"facts": facts, "arrays": shapes}).encode() + b"\n"
    part = path.with_name(f".{path.name}.part")
    disk.write(part, [head, *(np.ascontiguousarray(a).view(np.uint8).data for a in arrays.values())])
    disk.rename(part, path)


def kept(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """Return (facts, arrays) as `keep` wrote them, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as f:
        head = json.loads(f.readline())
        return head["facts"], {name: np.fromfile(f, np.dtype(kind), count) for name, kind, count in head["arrays"]}
