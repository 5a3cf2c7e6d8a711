"""Records of large files, made from their rows whenever they are asked for: what stays in memory is where each row begins.

8 bytes a row, 8 more where rows are not numbered one by one, 12 more a record where rows make several.
"""

import bisect
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.readers.arrow_rows import BATCH
from tunesmith.data.records import Origin, Record
from tunesmith.errors import InputError

Make = Callable[[int, dict[str, Any]], list[Record]]
"""(row number, row) -> its records."""
Numbers = npt.NDArray[np.int64]
_AHEAD = 1 << 18  # bytes read at once for who reads on from where he was


class Rows(Protocol):
    """Rows by their place in the order they were indexed in."""

    def row(self, at: int) -> dict[str, Any]:
        """Return one row."""
        ...


class Stamped:
    """A file as it was when it was indexed: size and time. InputError where it is another one now."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.stamp = stamp_of(os.stat(path))

    def opened(self) -> "_Handle":
        """Return the file, open, unchanged."""
        try:
            handle = _opened(str(self.path), self.stamp)
            if stamp_of(os.fstat(handle.number)) == self.stamp:
                return handle
        except FileNotFoundError:
            pass
        raise InputError(f"{self.name} was changed or removed while it was in use; start again.")


def stamp_of(stat: os.stat_result) -> tuple[int, int]:
    """Return (size, time of the last change): what tells that a file is still the same."""
    return stat.st_size, stat.st_mtime_ns


class _Handle:
    """An open file, closed with its last user: one thread may drop it while another reads."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=32)  # a set may have more files than a process may open
def _opened(path: str, stamp: tuple[int, int]) -> _Handle:
    return _Handle(path)


class TextRows:
    """Rows of a file of text by the bytes at which they begin; starts (R + 1,), the end last; read: bytes -> row."""

    def __init__(self, file: Stamped, starts: Numbers, read: Callable[[bytes], dict[str, Any]]) -> None:
        self.file, self.starts, self.read = file, starts, read
        self._block, self._next = (0, b""), -1

    def row(self, at: int) -> dict[str, Any]:
        """Return row `at`."""
        start, stop = int(self.starts[at]), int(self.starts[at + 1])
        begin, block = self._block  # taken together: two threads may read
        if not (begin <= start and stop <= begin + len(block)):
            length = max(stop - start, _AHEAD if at == self._next else 0)
            begin, block = self._block = (start, os.pread(self.file.opened().number, length, start))
        self._next = at + 1
        return self.read(block[start - begin : stop - begin])


class BatchRows:
    """Rows of an Arrow file by number: `places` (R,) of those that are meant. mapped: its batches may be too large to be read."""

    def __init__(self, file: Stamped, places: Numbers, mapped: bool) -> None:
        self.file, self.places, self.mapped = file, places, mapped
        self._block: tuple[int, list[dict[str, Any]]] = (0, [])
        self._next = -1

    def row(self, at: int) -> dict[str, Any]:
        """Return row `at`."""
        place = int(self.places[at])
        begin, block = self._block
        if not begin <= place < begin + len(block):
            reader, starts = _batches(str(self.file.path), self.file.stamp, self.file, self.mapped)
            which = bisect.bisect_right(starts, place) - 1
            batch = reader.get_batch(which)
            some = batch.slice(place - starts[which], BATCH if at == self._next else 1)
            begin, block = self._block = (place, some.to_pylist())
        self._next = at + 1
        return block[place - begin]


@lru_cache(maxsize=32)
def _batches(path: str, stamp: tuple[int, int], file: Stamped, mapped: bool) -> tuple[Any, list[int]]:
    """Return an Arrow file, open, and the number of the first row of each of its batches."""
    import pyarrow as pa

    file.opened()
    reader = pa.ipc.open_file(pa.memory_map(path) if mapped else pa.OSFile(path))
    starts = [0]
    for i in range(reader.num_record_batches - 1):
        starts.append(starts[-1] + reader.get_batch(i).num_rows)
    return reader, starts


class IndexedRows:
    """Rows of a sequence that is not in memory: a data set that `datasets` has mapped."""

    def __init__(self, rows: Any, places: Numbers) -> None:
        self.rows, self.places = rows, places

    def row(self, at: int) -> dict[str, Any]:
        """Return row `at`."""
        return dict(self.rows[int(self.places[at])])


class Index:
    """What is noted of a file's rows while they are read for the first time."""

    def __init__(self) -> None:
        self.places, self.numbers = array("q"), array("q")
        self.made = array("i")

    def note(self, number: int, place: int, records: int) -> None:
        """Note that the row of that number, at that place, makes so many records."""
        self.places.append(place)
        self.numbers.append(number)
        self.made.append(records)

    def starts(self, end: int) -> Numbers:
        """Return the places and, last, where the rows end, (R + 1,)."""
        self.places.append(end)
        return np.frombuffer(self.places, dtype=np.int64)

    def records(self, file: str, rows: Rows, make: Make, kept: npt.NDArray[np.bool_] | None) -> "FileRecords":
        """Return the file's records; kept (N,): which of those that the rows make."""
        numbers: Numbers | None = np.frombuffer(self.numbers, dtype=np.int64)
        made = np.frombuffer(self.made, dtype=np.int32)
        if np.array_equal(self.numbers, np.arange(1, len(made) + 1)):
            numbers = None
        if kept is None and (made == 1).all():
            return FileRecords(file, rows, make, len(made), numbers)
        row = np.repeat(np.arange(len(made)), made)
        part = (np.arange(len(row)) - np.repeat(np.cumsum(made) - made, made)).astype(np.int32)
        if kept is not None:
            row, part = row[kept], part[kept]
        return FileRecords(file, rows, make, len(row), numbers, row, part)


class FileRecords(Sequence[Record]):
    """The records of one file. numbers (R,): the rows' numbers for people, None where they are 1, 2, ...; row, part (N,): which
    record of which row each is, None where every row makes one.
    """

    def __init__(
        self,
        file: str,
        rows: Rows,
        make: Make,
        count: int,
        numbers: Numbers | None,
        row: Numbers | None = None,
        part: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.file, self.rows, self.make, self.total = file, rows, make, count
        self.numbers, self.of_row, self.part = numbers, row, part
        self._last: tuple[int, list[Record]] = (-1, [])

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> "Chosen": ...
    def __getitem__(self, at: int | slice) -> "Record | Chosen":
        if isinstance(at, slice):
            return Chosen(self, np.arange(*at.indices(self.total)))
        at = range(self.total)[at]
        row, part = (at, 0) if self.of_row is None or self.part is None else (int(self.of_row[at]), int(self.part[at]))
        last, made = self._last
        if last != row:
            made = self.make(self.number(row), self.rows.row(row))
            self._last = (row, made)
        return made[part]

    def number(self, row: int) -> int:
        """Return the number for people of the row at that place."""
        return row + 1 if self.numbers is None else int(self.numbers[row])


class Chosen(Sequence[Record]):
    """Some of a sequence of records, by number and in that order; holds none of them."""

    def __init__(self, records: Sequence[Record], numbers: Numbers) -> None:
        self.records, self.numbers = records, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> "Chosen": ...
    def __getitem__(self, at: int | slice) -> "Record | Chosen":
        if isinstance(at, slice):
            return Chosen(self.records, self.numbers[at])
        return self.records[int(self.numbers[at])]


class Joined(Sequence[Record]):
    """Sequences of records one after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.ends: list[int] = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Chosen: ...
    def __getitem__(self, at: int | slice) -> "Record | Chosen":
        if isinstance(at, slice):
            return Chosen(self, np.arange(*at.indices(len(self))))
        at = range(len(self))[at]
        which = bisect.bisect_right(self.ends, at)
        return self.parts[which][at - self.ends[which] + len(self.parts[which])]

    def __iter__(self) -> Iterator[Record]:
        for part in self.parts:
            yield from part


class Origins(Sequence[Origin]):
    """The origins of records, made when they are asked for."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, at: int) -> Origin: ...
    @overload
    def __getitem__(self, at: slice) -> "Origins": ...
    def __getitem__(self, at: int | slice) -> "Origin | Origins":
        if isinstance(at, slice):
            return Origins(self.records[at])
        return self.records[at].origin
