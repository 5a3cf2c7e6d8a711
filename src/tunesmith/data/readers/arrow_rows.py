"""Rows of Parquet and Arrow files (IPC file or stream), a few at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.formats._common import RowError
from tunesmith.data.readers.json_rows import Found
from tunesmith.data.readers.packed import first_line, opened
from tunesmith.data.records import Origin

BATCH = 1000
_MESSAGE = b"\xff\xff\xff\xff"  # begins each message of a stream since Arrow 0.15; one of no bytes ends it


class ArrowRows:
    """The rows of a Parquet or Arrow file; the byte of each is its place from 0. mapped: one batch may be too large to be read."""

    whole = False

    def __init__(self, path: Path, packed: str | None, name: str, parquet: bool, mapped: bool = False) -> None:
        self.path, self.packed, self.name, self.parquet, self.mapped = path, packed, name, parquet, mapped
        self.end = 0

    def rows(self) -> Found:
        """Yield (number, row, place); RowError where the file is damaged, also after rows that are whole."""
        at = 0
        for batch in self.batches():
            repeated = next((n for i, n in enumerate(batch.schema.names) if n in batch.schema.names[:i]), None)
            if repeated is not None:
                found = f'two columns have the name "{repeated}"; give one of them another.'
                raise RowError(Origin(self.name, 0), repeated, "repeated_field", found)
            self.end += batch.nbytes
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond all calendars
                rows = [self._alone(batch.slice(i, 1), at + i + 1) for i in range(len(batch))]
            for row in rows:
                yield row if isinstance(row, RowError) else (at + 1, row, at)
                at += 1

    def _alone(self, batch: Any, number: int) -> dict[str, Any] | RowError:
        """Return the one row of a batch, or what is wrong with it."""
        try:
            row: dict[str, Any] = batch.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            found = f"the row holds a value that cannot be read ({first_line(error)})."
            return RowError(Origin(self.name, number), None, "broken_value", found)
        return row

    def batches(self) -> Iterator[Any]:
        """Yield pyarrow's batches of at most 1,000 rows; memory stays at about one of them."""
        import pyarrow as pa

        kind = "Parquet" if self.parquet else "Arrow"
        try:
            with self._source() as source:
                yield from _parquet(source) if self.parquet else _arrow(source)
        except (pa.ArrowException, ValueError, OSError) as error:  # a damaged footer is an OSError of pyarrow's
            if isinstance(error, OSError) and error.errno is not None:
                raise
            found = f"the file is no readable {kind} ({first_line(error)})."
            raise RowError(Origin(self.name, 0), None, f"broken_{kind.lower()}", found) from None

    @contextlib.contextmanager
    def _source(self) -> Iterator[Any]:
        """Give the file as pyarrow reads it: from the disk, or where it is compressed unpacked in memory."""
        import pyarrow as pa

        if self.packed is None:
            with pa.memory_map(str(self.path)) if self.mapped else pa.OSFile(str(self.path)) as source:
                yield source
        else:
            with opened(self.path, self.packed, self.name) as f:
                yield pa.BufferReader(f.read())


def _parquet(source: Any) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20) as file:
        yield from file.iter_batches(BATCH)


def _arrow(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    size = source.size()
    if not size:
        raise ValueError("it is empty")
    magic = source.read(6)
    if magic == b"ARROW1":
        source.seek(0)
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        source.seek(max(0, size - 8))
        end = (_MESSAGE if magic.startswith(_MESSAGE) else b"") + bytes(4)
        if not source.read(8).endswith(end):  # pyarrow takes a stream cut between two batches for a shorter one
            raise ValueError("its end is missing: the file is not whole")
        source.seek(0)
        batches = iter(pa.ipc.open_stream(source))
    for batch in batches:
        for start in range(0, len(batch), BATCH):
            yield batch.slice(start, BATCH)
