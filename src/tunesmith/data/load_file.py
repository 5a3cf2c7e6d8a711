"""One file of a source: every row read and converted once, and its records kept, or, where they are many, where they lie."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunesmith.data import detect, files, lazy
from tunesmith.data.converting import Converter, begun
from tunesmith.data.formats._common import RowError
from tunesmith.data.places import Place
from tunesmith.data.readers.arrow_rows import ArrowRows
from tunesmith.data.records import KINDS, Record
from tunesmith.data.unpacked import copy_of
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.data.sources import Source

LARGE = 64_000_000  # bytes of text: above, records are not kept but made when they are asked for
_TIMES = 5  # as large as the file is the text of a compressed one, about
_ROW = 4_000  # bytes of a row, where only some rows of a file are meant, at most about
_KINDS = list(KINDS.values())


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What one file was read as: format's name, why it was taken for that, rows, and the index of its source.

    records: how many the rows made, kinds: of which kinds, without those `left_out` because nothing reads them. cut: which of
    its rows were meant, "" all.
    """

    path: str
    source: int
    format: str
    why: str
    rows: int
    fields_kept: tuple[str, ...] = ()
    records: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    cut: str = ""
    local: Path | None = None
    stamp: tuple[int, int] = (0, 0)

    def sha256(self) -> str | None:
        """Return the SHA-256 of the file's bytes, as hex digits; None of a data set of the hub. InputError where it changed since."""
        if self.local is None:
            return None
        try:
            with self.local.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
                same = lazy.stamp_of(os.fstat(f.fileno())) == self.stamp
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if not same:
            raise InputError(f"{self.path} was changed while it was in use; start again.")
        return digest


def size(place: Place) -> int:
    """Return about how many bytes of text the place's rows are; 0 of a data set of the hub."""
    if place.path is None:
        return 0
    try:
        found = place.path.stat().st_size * (_TIMES if place.packed or place.ending == ".parquet" else 1)
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}.") from error
    if place.cut is not None and not place.cut.counted and place.cut.stop is not None:
        start, stop = place.cut.bounds()
        found = min(found, (stop or 0) * _ROW - start * _ROW)
    return found


def load_file(
    place: Place, source: "Source", index: int, large: bool, wanted: Sequence[str] | None
) -> tuple[FileInfo, Sequence[Record]]:
    """Return what a file is and its records; RowError at the first row that is wrong.

    large: the records are made when they are asked for. wanted: the kinds that are kept where the rows make others too.
    """
    reader = files.reader(place, copy_of(place) if large else None)
    stamp = lazy.stamp_of(os.stat(place.path)) if place.path else (0, 0)
    name, why, items = begun(files.cut_rows(place, reader), source, str(place))
    make = Converter(source, str(place), name)
    joined = hasattr(detect.all_formats()[name], "join")  # rows that belong together have no one place
    if joined:
        items, make, large = (
            _joined(items, make),
            replace(make, source=replace(source, columns=None, labels=None)),
            False,
        )
    large = (large or _is_large(reader)) and not reader.whole
    gone_over = _gone_over(items, make, large, reader if not joined else None)
    if gone_over is None:  # larger than it looked
        return load_file(place, source, index, True, wanted)
    rows, fields, kinds, found = gone_over
    counts = Counter(_KINDS[k] for k in kinds.tolist()) if len(kinds) else Counter[str]()
    kept = None
    if wanted is not None and counts.keys() & set(wanted) and counts.keys() - set(wanted):
        kept = np.isin(kinds, [_KINDS.index(kind) for kind in wanted])
    left = {kind: count for kind, count in sorted(counts.items()) if kept is not None and kind not in (wanted or ())}
    records: Sequence[Record]
    if isinstance(found, lazy.Index):
        records = found.records(str(place), _rows_of(reader, place, found), make, kept)
    else:
        records = found if kept is None else [record for record, keep in zip(found, kept, strict=True) if keep]
    info = FileInfo(
        str(place),
        index,
        name,
        why,
        rows,
        tuple(sorted(fields)),
        len(records),
        {kind: count for kind, count in sorted(counts.items()) if kind not in left},
        left,
        str(place.cut or ""),
        place.path,
        stamp,
    )
    return info, records


def _joined(items: Iterator[Any], make: Converter) -> Iterator[Any]:
    rows = (item if isinstance(item, RowError) else item[:2] for item in items)
    return detect.rows(rows, make.name, make.file, make.source.columns, make.source.labels)


def _gone_over(
    items: Iterator[Any], make: lazy.Make, large: bool, reader: files.Reader | None
) -> tuple[int, set[str], npt.NDArray[np.uint8], "lazy.Index | list[Record]"] | None:
    """Convert every row; return (rows, fields kept in the first records, each record's kind, where they lie or themselves).

    None where they would be kept in memory and the reader has come further than that is wanted for.
    """
    index, records, kinds, fields, rows = lazy.Index(), list[Record](), array("B"), set[str](), 0
    number_of = {kind: _KINDS.index(name) for kind, name in KINDS.items()}
    for item in items:
        if isinstance(item, RowError):
            raise item
        made = make(item[0], item[1])
        rows += 1
        if len(kinds) < 100:
            fields.update(key for record in made for key in record.extra)
        for record in made:
            kinds.append(number_of[type(record)])
        if large:
            index.note(item[0], item[2], len(made))
        else:
            records += made
            if reader is not None and reader.end > LARGE and not reader.whole:
                return None
    return rows, fields, np.frombuffer(kinds, dtype=np.uint8), index if large else records


def _is_large(reader: files.Reader) -> bool:
    """Say whether a data set of the hub, which lies on the disk, is more than memory should hold."""
    opened = getattr(reader, "opened", None)
    return opened is not None and getattr(getattr(opened(), "data", None), "nbytes", 0) > LARGE


def _rows_of(reader: Any, place: Place, index: lazy.Index) -> lazy.Rows:
    if place.path is None:
        return lazy.IndexedRows(reader.opened(), index.starts(0)[:-1])
    file = lazy.Stamped(reader.path, str(place))
    if isinstance(reader, ArrowRows):
        return lazy.BatchRows(file, index.starts(0)[:-1], mapped=reader.path == place.path)
    return lazy.TextRows(file, index.starts(reader.end), reader.row)
