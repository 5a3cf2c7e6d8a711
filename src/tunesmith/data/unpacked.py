"""Copies of large files that can be read at any place: what is compressed unpacked, Parquet and Arrow streams as Arrow files.

A copy is found by its file's path, size, time and first and last bytes; it is written beside and renamed, so it is whole. The ones
used longest ago go when all take more than 20 GB or a tenth of the disk.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from tunesmith.data.places import Place
from tunesmith.data.readers.arrow_rows import ArrowRows
from tunesmith.data.readers.packed import opened
from tunesmith.errors import InputError

MOST_BYTES = 20 * 10**9
_EDGE = 1 << 16
_BLOCK = 1 << 20


def copy_of(place: Place) -> Path | None:
    """Return a copy of the place's file that can be read at any place, made where it is not there yet; None where none is needed.

    RowError where the file is damaged, InputError where the copy cannot be written.
    """
    if place.path is None or not _needed(place):
        return None
    from tunesmith.data.cache import folder_of_cache

    try:
        folder = folder_of_cache() / "rows"
        copy = folder / f"{_key(place.path)}.{'arrow' if place.ending in ('.parquet', '.arrow') else 'text'}"
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}.") from error
    except RuntimeError:
        raise InputError(
            f"{place} is large and needs a copy, but there is no home folder; set TUNESMITH_CACHE."
        ) from None
    with contextlib.suppress(OSError):
        os.utime(copy)  # it is used now
        return copy
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what the rows say
        handle, beside = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
        os.close(handle)
        _write(place, Path(beside))
        os.replace(beside, copy)
        _prune(copy)
    except OSError as error:
        raise InputError(
            f"{place} is large and needs a copy to be read from, but {folder} cannot be written "
            f"({error.strerror or error}); set TUNESMITH_CACHE to a folder with room."
        ) from error
    finally:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
    return copy


def _needed(place: Place) -> bool:
    assert place.path is not None
    if place.packed or place.ending == ".parquet":
        return True
    if place.ending != ".arrow":
        return False
    with contextlib.suppress(OSError), place.path.open("rb") as f:
        return f.read(6) != b"ARROW1"
    return False


def _key(file: Path) -> str:
    stat = file.stat()
    digest = hashlib.sha256(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    with file.open("rb") as f:
        digest.update(f.read(_EDGE))
        f.seek(max(0, stat.st_size - _EDGE))
        digest.update(f.read(_EDGE))
    return digest.hexdigest()


def _write(place: Place, to: Path) -> None:
    assert place.path is not None
    if place.ending in (".parquet", ".arrow"):
        _write_arrow(ArrowRows(place.path, place.packed, str(place), place.ending == ".parquet"), to)
        return
    with opened(place.path, place.packed, str(place)) as source, to.open("wb") as f:
        while block := source.read(_BLOCK):
            f.write(block)


def _write_arrow(rows: ArrowRows, to: Path) -> None:
    import pyarrow as pa

    writer = None
    with pa.OSFile(str(to), "wb") as sink:
        for batch in rows.batches():
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
        (writer or pa.ipc.new_file(sink, pa.schema([]))).close()


def _prune(kept: Path) -> None:
    """Drop the copies used longest ago until at most MOST_BYTES are left, and what writers that died left behind."""
    most = min(MOST_BYTES, shutil.disk_usage(kept.parent).total // 10)
    found = []
    for path in kept.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has dropped it
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        dead = path.suffix == ".part" and time.time() - used > 86_400
        if path != kept and (dead or (path.suffix != ".part" and total > most)):
            path.unlink(missing_ok=True)
            total -= size
