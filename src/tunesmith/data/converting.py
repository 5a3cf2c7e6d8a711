"""From a source's rows to its records: columns and labels under our names, the format's conversion, the kind that is wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tunesmith.data import detect
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin, Record

if TYPE_CHECKING:
    from tunesmith.data.sources import Source

LOOKED_AT = 20  # rows from which a file's format is told


def named(row: dict[str, Any], source: "Source", origin: Origin) -> dict[str, Any]:
    """Return the row with the source's columns and labels under the names it gives them; RowError where one is missing."""
    if source.columns:
        row = detect.rename(row, source.columns, origin)
    return detect.relabel(row, source.labels, origin) if source.labels else row


def converted(row: dict[str, Any], source: "Source", origin: Origin, name: str) -> list[Record]:
    """Return the records of a row of the format `name`, of the kind that the source wants; RowError where it makes none of it."""
    return made_of(named(row, source, origin), source, origin, name)


def made_of(row: dict[str, Any], source: "Source", origin: Origin, name: str) -> list[Record]:
    """Return the same of a row whose columns have our names already."""
    records = detect.convert(row, origin, name, source.format is not None)
    if source.kind is None:
        return records
    from tunesmith.data.kinds import as_kind

    return [made for record in records for made in as_kind(record, source.kind)]


@dataclass(frozen=True, slots=True)
class Converter:
    """(row number, row) -> its records, for the rows of one file."""

    source: "Source"
    file: str
    name: str

    def __call__(self, number: int, row: dict[str, Any]) -> list[Record]:
        """Return the row's records."""
        return converted(row, self.source, Origin(self.file, number), self.name)


def begun(items: Iterator[Any], source: "Source", file: str) -> tuple[str, str, Iterator[Any]]:
    """Return (the format's name, why, all the items again) after a look at the first; the first RowError among them is raised."""
    head = list(islice(items, LOOKED_AT))
    wrong = next((item for item in head if isinstance(item, RowError)), None)
    if wrong is not None:
        raise wrong
    rows = [(item[0], named(item[1], source, Origin(file, item[0]))) for item in head]
    if source.format is not None:
        return source.format, "stated by you", chain(head, items)
    return *detect.detect(rows, file), chain(head, items)
