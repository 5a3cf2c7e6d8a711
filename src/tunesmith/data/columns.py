"""Examples as they grow: in memory while they are few, in files that nobody else sees when they are many."""

import contextlib
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.lazy import Origins
from tunesmith.data.records import Examples, Record
from tunesmith.errors import InputError

KEPT = 1 << 22  # tokens in memory, 5 bytes each


class Column:
    """An array that grows; finished() gives it whole, mapped from a file where it is large."""

    def __init__(self, dtype: str, folder: Path | None) -> None:
        self.dtype, self.folder = np.dtype(dtype), folder
        self.waiting: list[npt.NDArray[Any]] = []
        self.size = 0
        self.file: IO[bytes] | None = None

    def add(self, values: npt.NDArray[Any]) -> None:
        """Append values."""
        self.waiting.append(values)
        self.size += len(values)
        if self.size >= KEPT:
            self._write()

    def _write(self) -> None:
        self.file = self.file or _temporary(self.folder)
        try:
            self.file.write(self._joined().data)
            self.file.flush()
        except OSError as e:
            raise InputError(
                f"the tokens of the data do not fit on the disk ({e.strerror}); make room, or set TUNESMITH_CACHE to a "
                "folder that has more."
            ) from e
        self.waiting, self.size = [], 0

    def _joined(self) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, self.dtype), *self.waiting], dtype=self.dtype, casting="same_kind")

    def finished(self) -> npt.NDArray[Any]:
        """Return the whole array, (N,)."""
        if self.file is None:
            return self._joined()
        self._write()
        mapped = np.memmap(self.file, self.dtype, mode="r").view(np.ndarray)
        self.file.close()  # the mapping keeps what it needs
        return mapped


def _temporary(folder: Path | None) -> IO[bytes]:
    """Return a file without a name in the folder, else where the system keeps such files (which may be memory)."""
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what the rows say
            return tempfile.TemporaryFile(dir=folder)
    return tempfile.TemporaryFile()


class Growing:
    """Examples that are appended one by one; 20 bytes of each stay in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.ids, self.scored = Column("<i4", folder), Column("?", folder)
        self.lengths, self.record, self.answer = array("q"), array("q"), array("i")

    def add(self, record: int, answer: int, ids: npt.NDArray[np.int32], scored: npt.NDArray[np.bool_]) -> None:
        """Append an example of record number `record`, and of its conversations the one numbered `answer`."""
        self.answer.append(answer)
        self.ids.add(ids)
        self.scored.add(scored)
        self.lengths.append(len(ids))
        self.record.append(record)

    def finished(self, records: Sequence[Record]) -> Examples:
        """Return the examples, with the origins of the records they came from."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(self.lengths, np.int64), out=offsets[1:])
        record, answer = np.array(self.record, dtype=np.int64), np.array(self.answer, dtype=np.int32)
        return Examples(self.ids.finished(), self.scored.finished(), offsets, record, Origins(records), answer)
