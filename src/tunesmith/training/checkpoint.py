"""Checkpoints: written beside, synced, checksummed, renamed; safetensors and JSON only. A damaged one is named, the one before used."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write checkpoints/step-N with one safetensors file per entry of `tensors` and state.json; return its path.

    Nothing of that name is visible until every byte is on disk: files and folder are synced before the rename, the parent after.
    A step that is saved whole already is left as it is. Newer ones, which were damaged when the run was resumed, are dropped.
    """
    final = folder / f"step-{step}"
    if final.is_dir() and damage(final) is None:
        return final  # saved twice, as best and as due: to replace it would leave a moment without
    beside = folder / f".step-{step}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, group in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, beside / f"{name}.safetensors")
    (beside / "state.json").write_text(json.dumps(state))
    sums = {p.name: _sum(p) for p in sorted(beside.iterdir())}
    (beside / MANIFEST).write_text(json.dumps(sums, indent=1))
    for p in beside.iterdir():
        sync(p)
    sync(beside)
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    sync(folder)
    for newer in listed(folder):
        if _step(newer) > step:
            shutil.rmtree(newer)
    return final


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint that `damage` finds whole: (tensors by file, state)."""
    tensors = {p.stem: load_file(p) for p in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_text())


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None where every file is there and has the checksum written with it."""
    try:
        sums = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{path / MANIFEST} is missing or no JSON"
    for name, wanted in sums.items():
        file = path / os.path.basename(name)
        if not file.is_file():
            return f"{file} is missing"
        if _sum(file) != wanted:
            return f"{file} does not have the checksum it was written with"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint in a run's checkpoints folder (None: there is none) and a sentence per damaged one."""
    notices: list[str] = []
    for path in reversed(listed(folder)):
        wrong = damage(path)
        if wrong is None:
            return path, notices
        notices.append(f"the checkpoint {path.name} is damaged and left aside: {wrong}")
    return None, notices


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest step first."""
    return sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), key=_step)


def prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one, and what unfinished saves left behind."""
    for path in listed(folder)[:-keep_last]:
        if path.name != f"step-{best_step}":
            shutil.rmtree(path)
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)


def rng_state() -> dict[str, Tensor]:
    """Return the states of torch's random generators as byte tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """The inverse of rng_state."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sum(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
