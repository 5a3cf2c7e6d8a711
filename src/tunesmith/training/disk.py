"""Files that are whole or not there, and disks that are full: the writes, syncs and renames of what a run must not lose."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tunesmith.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, or the file at its limit
STATE_BYTES = 12  # of a checkpoint per trained parameter: the fp32 master and AdamW's two moments
BESIDES = 1 << 18  # of a checkpoint that is no parameter's: names, checksums, the random states of a few processes


def at(what: str) -> None:
    """Called before every write, sync, rename and deletion. Does nothing; a test puts its own in its place, to die there."""


def write(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> str:
    """Write a new file, wait until it is on disk, and return its SHA-256, taken of the bytes as they go by."""
    digest = hashlib.sha256()
    with path.open("wb") as f:
        for piece in pieces:
            at(f"write {path.name}")
            f.write(piece)
            digest.update(piece)
        f.flush()
        at(f"sync {path.name}")
        os.fsync(f.fileno())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    at(f"sync {path.name}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within a folder, and wait until the folder's new content is on disk."""
    at(f"rename {target.name}")
    source.rename(target)
    sync(target.parent)


def free(folder: Path) -> int:
    """Return the bytes that can still be written where `folder` is or would be made."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def checkpoint_bytes(size: int, tensors: int) -> int:
    """Return what a checkpoint of so many tensors, `size` bytes in all, takes at most: names, manifest and whole blocks included."""
    return size + 512 * tensors + (64 << 10)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full (safetensors says so in words only)."""
    return (isinstance(error, OSError) and error.errno in FULL) or f"os error {errno.ENOSPC}" in str(error)


def sentence(folder: Path, error: BaseException) -> str:
    """Return what to say of an error that `is_full` finds to be one."""
    file = getattr(error, "filename", None) or folder
    return f"{file}: the disk is full ({free(folder):,} bytes are free); free space and continue with --resume."


def check_run(folder: Path, trained: int, itemsize: int, checkpoints: int) -> None:
    """InputError where a run's checkpoints at their most (`checkpoints` of them) and its result do not fit beside its folder.

    `trained` parameters of `itemsize` bytes each in the result; what the folder's checkpoints take already is theirs.
    """
    there = sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
    needed = checkpoints * (trained * STATE_BYTES + BESIDES) + trained * itemsize - there
    found = free(folder)
    if found < needed:
        raise InputError(
            f"the disk of {folder} is too full for this run: {checkpoints} checkpoints and the result take {needed:,} bytes, "
            f"{found:,} are free; free space there, or choose another --output."
        )
