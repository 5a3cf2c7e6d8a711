"""Checkpoints: written beside, synced, checksummed, renamed; safetensors and JSON only. A damaged one is named, the one before used."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.training import disk

MANIFEST = "manifest.json"
PIECE = 1 << 18  # bytes written and hashed at a time, while they are in the cache and without holding Python's lock
SMALL = 1 << 16  # bytes of a tensor that is joined with others to a piece, which does hold it
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = dict[str, dict[str, Tensor]]
"""file -> name -> tensor"""


def save(folder: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write checkpoints/step-N with one safetensors file per entry of `tensors` and state.json; return its path.

    Nothing of that name is visible until every byte is on disk: files and folder are synced before the rename, the parent after.
    A step that is saved whole already is left as it is. Newer ones, which were damaged when the run was resumed, are dropped.
    Raises OSError where the disk refuses; what was written till then is deleted.
    """
    final, beside = folder / f"step-{step}", folder / f".step-{step}.part"
    if final.is_dir() and damage(final) is None:
        return final  # saved twice, as best and as due: to replace it would leave a moment without
    try:
        _write(beside, tensors, state)
        shutil.rmtree(final, ignore_errors=True)
        disk.rename(beside, final)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)  # on a full disk every byte counts
        raise
    for newer in listed(folder):
        if _step(newer) > step:
            remove(newer)
    return final


def _write(beside: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    sums = {}
    for name, group in tensors.items():
        file = f"{name}.safetensors"
        sums[file] = disk.write(beside / file, _safetensors(group))
    sums["state.json"] = disk.write(beside / "state.json", [json.dumps(state).encode()])
    disk.write(beside / MANIFEST, [json.dumps(sums, indent=1).encode()])
    disk.sync(beside)


def _safetensors(group: dict[str, Tensor]) -> Iterator[bytearray | memoryview]:
    """Yield a safetensors file's bytes: the header's length (8 bytes), the header (JSON), then every tensor's own memory.

    The library's own writer makes a second copy of every tensor first, and its file would have to be read again for the checksum.
    Wider dtypes come first, so that every tensor is aligned. Small ones are joined, up to a piece.
    """
    names = sorted(group, key=lambda n: (-group[n].dtype.itemsize, n))
    header, end = {}, 0
    for name in names:
        t = group[name]
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [end, end + t.nbytes]}
        end += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    joined = bytearray(len(text).to_bytes(8, "little") + text)
    for name in names:
        array: Any = group[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        content = memoryview(array)
        if len(content) < SMALL and len(joined) < PIECE:
            joined += content
            continue
        yield joined
        yield from (content[i : i + PIECE] for i in range(0, len(content), PIECE))
        joined = bytearray()
    yield joined


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a checkpoint that `damage` finds whole: (tensors by file, state)."""
    tensors = {p.stem: load_file(p) for p in sorted(path.glob("*.safetensors"))}
    return tensors, json.loads((path / "state.json").read_text())


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, None where every file is there and has the checksum written with it."""
    try:
        sums = dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        return f"{path / MANIFEST} is missing or no JSON"
    for name, wanted in sums.items():
        file = path / os.path.basename(name)
        if not file.is_file():
            return f"{file} is missing"
        try:
            with file.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            return f"{file} cannot be read: {e.strerror}"
        if found != wanted:
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
            remove(path)
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part)


def remove(path: Path) -> None:
    """Delete a checkpoint under another name: a run killed while at it leaves none with files missing."""
    aside = path.with_name(f".{path.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    disk.rename(path, aside)
    disk.at(f"delete {path.name}")
    shutil.rmtree(aside)


def seed_rng(seed: int) -> None:
    """Seed the generators whose states are stored."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state(rank: int = 0) -> dict[str, Tensor]:
    """Return the states of this process's random generators as tensors, named "<rank>/<generator>".

    torch's are what training draws from; a few models of transformers (BigBird's attention, say) draw from numpy's or Python's.
    """
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state()
    kind, keys, *rest = numpy
    assert (version, kind) == (3, "MT19937")
    found = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor([*words, float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), *rest], dtype=torch.float64),
        **{name: device.get_rng_state() for name, device in _devices().items()},
    }
    return {f"{rank}/{name}": value for name, value in found.items()}


def set_rng_state(state: dict[str, Tensor], rank: int = 0) -> None:
    """The inverse of rng_state; a process that was not there when the states were taken keeps its own."""
    own = {k.removeprefix(f"{rank}/"): v for k, v in state.items() if k.startswith(f"{rank}/")}
    if not own:
        return
    torch.set_rng_state(own["cpu"])
    *words, gauss = own["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if gauss != gauss else gauss))
    *keys, at, has_gauss, cached = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), int(at), int(has_gauss), cached))
    for name, device in _devices().items():
        if name in own:
            device.set_rng_state(own[name])


def _devices() -> dict[str, Any]:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return {name: getattr(torch, name) for name, is_there in there.items() if is_there}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
