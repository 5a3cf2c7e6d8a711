"""Reading what is to be prepared: every row once, converted and put into the work folder; the broken ones noted with their reason."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data import detect, files
from tunesmith.data.content import said
from tunesmith.data.converting import LOOKED_AT, made_of, named
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin, Record
from tunesmith.data.sources import Source, parse, places
from tunesmith.data.spool import Journal, Records, Spooled, plain
from tunesmith.errors import InputError
from tunesmith.run import finite

_PATIENCE = 10_000  # broken rows before the first good one
CATEGORIES = ("category", "label", "task", "topic", "domain", "type", "source")  # fields that tell what a row is about
MOST_VALUES = 1000  # of a field whose values are counted
Item = tuple[int, dict[str, Any]] | RowError


@dataclass
class Read:
    """What was read. places (N,): where each record lies in `records`; source (N,): which entry of `data` it came from;
    characters (N,) of what each says. `files` tell path, source, format, why, rows, records, broken; `broken` the rows that
    gave no record, each with `before`, the number of records read before it; `values` how often fields that tell categories
    have which value; `spared` the ids that no step may drop.
    """

    records: Records
    broken: Journal
    places: npt.NDArray[np.int64]
    source: npt.NDArray[np.int16]
    characters: npt.NDArray[np.float32]
    files: list[dict[str, Any]]
    values: dict[str, Counter[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    spared: list[int] = field(default_factory=list)

    @property
    def sequence(self) -> Spooled:
        """The records in order, none of them in memory."""
        return Spooled(self.records, self.places)

    def save(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Wait until the files are on disk; return (facts, arrays) from which `restored` makes the same."""
        self.records.spool.sync()
        self.broken.spool.sync()
        facts = {"records": self.records.spool.size, "broken": self.broken.spool.size, "files": self.files}
        arrays: dict[str, npt.NDArray[Any]] = {
            "places": self.places,
            "source": self.source,
            "characters": self.characters,
            "broken": np.array(self.broken.places, dtype=np.int64),
        }
        return facts | {"values": self.values, "notices": self.notices, "spared": self.spared}, arrays

    @classmethod
    def restored(cls, folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> "Read":
        """Return what `save` kept."""
        broken = Journal(folder / "broken", facts["broken"])
        broken.places.frombytes(arrays["broken"].tobytes())
        broken.before.extend([-1] * len(broken.places))
        records = Records(folder / "records", facts["records"])
        columns = (arrays["places"], arrays["source"], arrays["characters"])
        values = {name: Counter(counts) for name, counts in facts["values"].items()}
        return cls(records, broken, *columns, facts["files"], values, facts["notices"], facts["spared"])


class _Reading:
    """Read under way."""

    def __init__(self, folder: Path, wanted: Sequence[str], fields: Sequence[str]) -> None:
        self.records, self.broken = Records(folder / "records"), Journal(folder / "broken")
        self.places, self.source, self.characters = array("q"), array("h"), array("f")
        self.wanted = dict.fromkeys(wanted, False)  # rows to be restored: found or not
        self.spared: list[int] = []
        self.left_out: Counter[tuple[str, str]] = Counter()  # a field, and what is wrong with its values
        self.values: dict[str, Counter[str]] = {name: Counter() for name in fields}

    def take(self, record: Record, source: int) -> None:
        record = self._jsonable(record)
        if self.wanted:
            name = f"{record.origin.file}:{record.origin.row}"
            if name in self.wanted:
                self.wanted[name] = True
                self.spared.append(len(self.places))
        self.places.append(self.records.put(record))
        self.source.append(source)
        self.characters.append(len(said(record)))
        for name, counts in self.values.items() if record.extra else ():
            value = record.extra.get(name)
            if value is not None and (str(value) in counts or len(counts) < MOST_VALUES):
                counts[str(value)] += 1

    def note(self, error: RowError) -> None:
        message = re.sub(
            r" \(.*\), expected", ", expected", error.message, flags=re.DOTALL
        )  # the row's own text stays out
        entry = {"file": error.origin.file, "row": error.origin.row, "kind": error.kind, "reason": message}
        self.broken.append({**entry, "before": len(self.places)}, -1)

    def _jsonable(self, record: Record) -> Record:
        """Return the record with only such extra fields as JSON can say."""
        if not record.extra:
            return record
        try:
            json.dumps(record.extra, allow_nan=False)
        except (TypeError, ValueError):
            extra = {}
            for key, value in record.extra.items():
                try:
                    extra[key] = finite(plain(value))
                except TypeError as error:
                    self.left_out[key, str(error)] += 1
            return replace(record, extra=extra)
        return record


def read(
    data: Sequence[Mapping[str, Any] | str],
    folder: Path,
    restore: Sequence[str] = (),
    fields: Sequence[str] = CATEGORIES,
) -> Read:
    """Read every source into files in `folder`. Broken rows are noted; InputError where a file has no other.

    restore: rows as FILE:ROW whose records no step may drop; InputError where a source has no such row, or a broken one.
    fields: those whose values are counted.
    """
    reading = _Reading(folder, restore, fields)
    infos, notices = [], []
    for index, source in enumerate(parse(list(data))):
        found, told = places(source)
        notices += told
        infos += [_read_file(file, source, index, reading) for file in found]
    for name, seen in reading.wanted.items():
        if not seen:
            raise InputError(f'prepare.restore names "{name}", which is no row that could be read from the sources.')
    for (key, why), count in sorted(reading.left_out.items()):
        notices.append(f'the field "{key}" of {count:,} row{"s" * (count != 1)} is left out: {why}')
    return Read(
        reading.records,
        reading.broken,
        np.array(reading.places, dtype=np.int64),
        np.array(reading.source, dtype=np.int16),
        np.array(reading.characters, dtype=np.float32),
        infos,
        reading.values,
        notices,
        reading.spared,
    )


def _read_file(file: files.Place, source: Source, index: int, reading: _Reading) -> dict[str, Any]:
    first_record, first_broken = len(reading.places), len(reading.broken)
    shown = str(file)
    items = files.stream(file)
    head, name, why = _format(items, source, shown)
    error, rows = None, 0
    for item in detect.rows(chain(head, items), name, shown, source.columns, source.labels):
        rows += 1
        try:
            if isinstance(item, RowError):
                raise item
            for record in _records(item[1], Origin(shown, item[0]), name, source):
                reading.take(record, index)
        except RowError as e:
            error = error or e
            reading.note(e)
    if len(reading.places) == first_record and error is not None:
        raise error
    return {
        "path": shown,
        "source": index,
        "format": name,
        "why": why,
        "rows": rows,
        "records": len(reading.places) - first_record,
        "broken": len(reading.broken) - first_broken,
        **({} if file.cut is None else {"cut": str(file.cut)}),
    }


def _records(row: dict[str, Any], origin: Origin, name: str, source: Source) -> list[Record]:
    """Return the records of a row, of the kind that its source asks for; RowError where it makes none."""
    made = made_of(row, source, origin, name)
    if not made:
        raise RowError(
            origin, None, "no_record", "it makes no record (it is deleted, or holds nothing of the kind asked for)."
        )
    return made if len(made) == 1 else [replace(r, origin=replace(origin, part=i)) for i, r in enumerate(made)]


def _format(items: Iterator[Item], source: Source, file: str) -> tuple[list[Item], str, str]:
    """Return (the items looked at, the format's name, why); RowError where none can be told."""
    head: list[Item] = []
    good: list[tuple[int, dict[str, Any]]] = []
    error: RowError | None = None
    for item in items:
        head.append(item)
        try:
            if isinstance(item, RowError):
                raise item
            good.append((item[0], named(item[1], source, Origin(file, item[0]))))
        except RowError as e:
            error = error or e
        if len(good) == LOOKED_AT or (len(head) == _PATIENCE and not good):
            break
    if not good:
        raise error or RowError(Origin(file, 0), None, "empty_file", "the file holds no rows.")
    if source.format is not None:
        return head, source.format, "stated by you"
    return head, *detect.detect(good, file)
