"""Small facts of a run: its data's fingerprint, its throughput, its device's name, and what a failing machine lacks."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.records import Examples
from tunesmith.training import disk, memory


def lacking(folder: Path, error: Exception) -> str | None:
    """Return what to say of an error that is the machine's: no room on the disk, or no memory."""
    if disk.is_full(error):
        return disk.sentence(folder, error)
    return memory.SENTENCE if memory.ran_out(error) else None


def throughput(tokens: list[int], seconds: list[float]) -> float | None:
    """Real tokens per second of stepping, the first two steps left out (None where there were no more)."""
    return round(sum(tokens[2:]) / sum(seconds[2:]), 1) if len(tokens) > 2 else None


def fingerprint(examples: Examples, rows: Any, difficulty: Any = None) -> str:
    """Return a digest of everything that decides which tokens are trained on, and in which order."""
    digest = hashlib.sha256()
    compared = [] if examples.groups is None else [examples.groups, examples.answer, examples.values]
    order = [] if difficulty is None else [difficulty]
    for array in (examples.ids, examples.scored, examples.offsets, rows, *order, *compared):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def device_name(device: str) -> str:
    """Return a GPU's own name, or the device's kind."""
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name())
