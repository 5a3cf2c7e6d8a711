"""Records and fates kept in files of a work folder, so that millions of rows cost no memory: read by number, in any order.

What lies there is a step's own intermediate, for the process that goes on with it. It holds no code.
"""

import json
import marshal
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Chat, Origin, Preference, Prompt, Record, Text, Verdict
from tunesmith.training import disk

_KINDS: tuple[type, ...] = (Text, Chat, Preference, Verdict, Prompt)
_FIELDS = tuple([f for f in kind.__dataclass_fields__ if f != "origin"] for kind in _KINDS)  # type: ignore[attr-defined]
_AHEAD = 1 << 18  # bytes read at once by who reads on from where he was


class Spool:
    """A file that only grows: append(bytes) -> its place; read(place, length).

    In a work folder, or (path None) a temporary file that is gone with the process.
    """

    def __init__(self, path: Path | None = None, size: int = 0) -> None:
        self._file: IO[bytes] = (
            tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the spool)
            if path is None
            else path.open("r+b" if size else "w+b")
        )
        self._file.truncate(size)  # what a killed process wrote after its last whole state is not of this one
        self._file.seek(size)
        self.size = size
        self._unflushed = False
        self._block = (0, b"")

    def append(self, data: bytes) -> int:
        """Write at the end; return where it begins."""
        place = self.size
        self._file.write(data)
        self.size += len(data)
        self._unflushed = True
        return place

    def read(self, place: int, length: int) -> bytes:
        """Return the bytes at a place. Who reads on from where he was is read ahead for."""
        if self._unflushed:
            self._file.flush()
            self._unflushed = False
        start, block = self._block  # taken together: two threads may read
        if start <= place and place + length <= start + len(block):
            return block[place - start : place - start + length]
        follows = 0 <= place - (start + len(block)) <= length or start <= place < start + len(block)
        block = os.pread(self._file.fileno(), max(length, _AHEAD) if follows else length, place)
        self._block = (place, block)
        return block[:length]

    def sync(self) -> None:
        """Wait until all is on disk."""
        self._file.flush()
        self._unflushed = False
        disk.at(f"sync {self._file.name}")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Records:
    """Records in a spool, each found by the place it was put at."""

    def __init__(self, path: Path | None = None, size: int = 0) -> None:
        self.spool = Spool(path, size)

    def put(self, record: Record) -> int:
        """Write a record; return its place."""
        data = _packed(record)
        return self.spool.append(len(data).to_bytes(4, "little") + data)

    def get(self, place: int) -> Record:
        """Return the record at a place."""
        length = int.from_bytes(self.spool.read(place, 4), "little")
        code, file, row, part, *values = marshal.loads(self.spool.read(place + 4, length))
        fields = dict(zip(_FIELDS[code], values, strict=True))
        found: Record = _KINDS[code](origin=Origin(file, row, part), **fields)
        return found


class Spooled(Sequence[Record]):
    """A sequence of the records at these places, none of which is held in memory."""

    def __init__(self, records: Records, places: npt.NDArray[np.int64]) -> None:
        self._records, self._places = records, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Spooled": ...
    def __getitem__(self, index: int | slice) -> "Record | Spooled":
        if isinstance(index, slice):
            return Spooled(self._records, self._places[index])
        return self._records.get(int(self._places[index]))


class Journal:
    """What happened to records, in order of writing; and, by a chain from the last entry back, what happened to each one."""

    def __init__(self, path: Path | None = None, size: int = 0) -> None:
        self.spool = Spool(path, size)
        self.places = array("q")  # of each entry; the end of the last is the spool's
        self.before = array("q")  # the entry before it of the same record, -1 for none

    def __len__(self) -> int:
        return len(self.places)

    def append(self, entry: dict[str, Any], before: int) -> int:
        """Write an entry; return its number."""
        data = json.dumps(entry, ensure_ascii=False, default=plain).encode("utf-8", "surrogatepass")
        self.places.append(self.spool.append(data))
        self.before.append(before)
        return len(self.places) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        start = self.places[number]
        stop = self.places[number + 1] if number + 1 < len(self.places) else self.spool.size
        entry: dict[str, Any] = json.loads(self.spool.read(start, stop - start).decode("utf-8", "surrogatepass"))
        return entry

    def chain(self, last: int) -> list[dict[str, Any]]:
        """Return a record's entries, the first first; `last` is the number of its last."""
        found = []
        while last >= 0:
            found.append(self[last])
            last = self.before[last]
        return found[::-1]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))


def plain(value: Any) -> Any:
    """Return a value as JSON can say it: numpy's numbers as numbers, dates as ISO text; TypeError for bytes and objects."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


def _packed(record: Record) -> bytes:
    code = _KINDS.index(type(record))
    origin = record.origin
    values = [getattr(record, name) for name in _FIELDS[code]]
    content = (code, origin.file, origin.row, origin.part, *values)
    with_plain = False
    try:
        data = marshal.dumps(content)
        with_plain = marshal.loads(data) == content  # numpy's numbers come back as bytes
    except ValueError:
        pass
    return data if with_plain else marshal.dumps((code, origin.file, origin.row, origin.part, *map(plain, values)))
