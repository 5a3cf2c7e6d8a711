"""Checkpoints written in the background: the loop pays for a copy of the tensors, a thread serialises, checksums, syncs and renames."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.training import checkpoint, disk
from tunesmith.training.checkpoint import Tensors

ALIGNED = 64  # bytes: where a tensor may begin in a block of several


class Writer:
    """Writes a run's checkpoints one at a time, and deletes those no longer kept once the new one is whole.

    What kept one from the disk is raised in the loop's thread, at its next call: InputError where the disk is full or failing.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last
        self._thread: threading.Thread | None = None
        self._written: list[Path] = []
        self._error: Exception | None = None
        self._step: int | None = None  # the newest that is written

    def submit(self, step: int, tensors: Tensors, state: dict[str, Any], best_step: int | None) -> None:
        """Begin to write the checkpoint of `step`, everything as it is now; waits where the one before is still under way.

        Where memory has no room for a copy it is written at once instead. InputError where the disk has no room for it.
        """
        import psutil

        self.wait()
        if step == self._step:
            return  # as best and as due
        size = sum(t.nbytes for group in tensors.values() for t in group.values())
        needed, free = disk.checkpoint_bytes(size, sum(map(len, tensors.values()))), disk.free(self.folder)
        if free < needed:
            raise InputError(self._sentence(step, f"takes {needed:,} bytes and {free:,} are free"))
        state = copy.deepcopy(state)
        if size > psutil.virtual_memory().available // 4:  # a pinned block may be twice what it holds
            self._write(step, lambda: tensors, state, best_step)
            return self._raise()
        arguments = (step, snapshot(tensors), state, best_step)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until what was submitted is on disk; raise what kept it from there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def written(self) -> list[Path]:
        """Return the checkpoints that reached the disk since the last call; raise what kept one from it."""
        self._raise()
        done = self._written[:]
        del self._written[: len(done)]
        return done

    def _write(self, step: int, tensors: Callable[[], Tensors], state: dict[str, Any], best_step: int | None) -> None:
        try:
            self._written.append(checkpoint.save(self.folder, step, tensors(), state))
            self._step = step
            checkpoint.prune(self.folder, self.keep_last, best_step)
        except OSError as e:
            why = f"cannot be written ({e.strerror or e})"
            if disk.is_full(e):
                why = f"did not fit: {disk.free(self.folder):,} bytes are free"
            self._error = InputError(self._sentence(step, why))
        except Exception as e:  # raised again where the loop sees it
            self._error = e

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _sentence(self, step: int, why: str) -> str:
        whole = checkpoint.listed(self.folder)
        kept = f"{whole[-1].name} is whole" if whole else "no checkpoint was written before"
        remedy = "free space there" if "free" in why else "mend that"
        return f"{self.folder}: the checkpoint of step {step} {why}; {kept}: {remedy} and continue with --resume."


def snapshot(tensors: Tensors) -> Callable[[], Tensors]:
    """Copy tensors and return a function that returns the copies in host memory once they are whole.

    Nothing of the originals is read after this returns, or, on a GPU, after the work queued so far: the copies into pinned memory
    are queued on its stream before whatever changes the originals next, and the function waits for them.
    """
    if not any(t.is_cuda for group in tensors.values() for t in group.values()):
        copies = {
            file: {k: t.detach().to("cpu", copy=True) for k, t in group.items()} for file, group in tensors.items()
        }
        return lambda: copies
    copies = {file: packed(group, pin=True) for file, group in tensors.items()}
    done = torch.cuda.Event()
    done.record()

    def ready() -> Tensors:
        done.synchronize()
        return copies

    return ready


def packed(group: dict[str, Tensor], pin: bool) -> dict[str, Tensor]:
    """Return copies that lie in one block of host memory: to pin a thousand small ones would take longer than to copy them."""
    starts = np.cumsum([0, *(-(-t.nbytes // ALIGNED) * ALIGNED for t in group.values())]).tolist()
    block = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)
    copies = {}
    for (name, t), start in zip(group.items(), starts[:-1], strict=True):
        copies[name] = block[start : start + t.nbytes].view(t.dtype).view(t.shape)
        copies[name].copy_(t.detach(), non_blocking=pin)
    return copies
