"""Reading a place's rows, one by one or all at once, whatever the kind of its file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.formats._common import RowError
from tunesmith.data.places import TABLES, TEXTS, Cut, Place, endings, expand
from tunesmith.data.readers.arrow_rows import ArrowRows
from tunesmith.data.readers.csv_rows import CsvRows
from tunesmith.data.readers.json_rows import Found, JsonRows
from tunesmith.data.readers.text_rows import TextRows
from tunesmith.data.records import Origin
from tunesmith.errors import InputError

__all__ = ["TABLES", "TEXTS", "Cut", "Place", "Table", "cut_rows", "expand", "place_of", "read", "reader", "stream"]


class Reader(Protocol):
    """A file's rows in their order. `whole`: it has them in memory anyway; end: how many bytes it has read, unpacked."""

    whole: bool
    end: int

    def rows(self) -> Found:
        """Yield (number, row, first byte or place) or what is wrong with a row."""
        ...


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows with their numbers from 1 (JSONL: the line; CSV: counted below the header), and the broken ones."""

    file: str
    rows: list[tuple[int, dict[str, Any]]]
    broken: list[RowError] = field(default_factory=list)


def place_of(file: Place | Path | str, split: str = "train") -> Place:
    """Return the place that a path, or a hub id (a string), names."""
    if isinstance(file, Place):
        return file
    return Place(file) if isinstance(file, Path) else expand(file, split)[0][0]


def reader(place: Place, plain: Path | None = None) -> Reader:
    """Return what reads the place's rows; `plain`: a copy of the file that is not compressed."""
    if place.path is None:
        from tunesmith.data.hub import HubRows

        return HubRows(place)
    ending, packed = endings(place.path)
    where, packed, name = (plain, None, str(place)) if plain else (place.path, packed, str(place))
    if ending in (".parquet", ".arrow"):
        return ArrowRows(
            where, packed, name, ending == ".parquet" and plain is None, ending == ".arrow" and plain is None
        )
    if ending in (".csv", ".tsv"):
        return CsvRows(where, packed, name, ending == ".tsv", place.headless)
    if ending in TEXTS:
        return TextRows(where, packed, name)
    return JsonRows(where, packed, name, ending != ".json")


def stream(file: Place | Path | str, split: str = "train") -> Iterator[tuple[int, dict[str, Any]] | RowError]:
    """Yield (row number, row) or a row's RowError one by one, in order, with memory for a few rows.

    A JSON file that is no list of rows but holds one is read at once. RowError (raised) where the file cannot be read at all,
    is empty or holds no rows; InputError where the system, or the hub, does not give it.
    """
    place = place_of(file, split)
    for item in cut_rows(place, reader(place)):
        yield item if isinstance(item, RowError) else item[:2]


def cut_rows(place: Place, from_: Reader) -> Found:
    """Yield what the reader yields of the rows that the place means; errors as `stream`."""
    start, stop = 0, None
    if place.cut is not None:
        start, stop = place.cut.bounds(sum(1 for _ in _named(place, from_.rows)) if place.cut.counted else None)
    count = 0
    for item in islice(_named(place, from_.rows), stop):
        count += 1
        if count > start:
            yield item
    if not count and stop != 0:
        raise RowError(Origin(str(place), 0), None, "empty_file", "the file holds no rows.")
    if count <= start:
        has = f"the file has {count:,} row{'s' * (count != 1)}" if stop != 0 else "that is less than one row"
        raise RowError(Origin(str(place), 0), None, "empty_slice", f"{place.cut} holds no rows: {has}.")


def _named(place: Place, rows: Any) -> Found:
    """Yield the rows; what the system says of the file becomes one sentence."""
    try:
        yield from rows()
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}.") from error


def read(file: Place | Path | str, split: str = "train") -> Table:
    """Return a place's rows at once, the broken ones listed; errors as `stream`."""
    place = place_of(file, split)
    rows, broken = [], []
    for item in stream(place):
        if isinstance(item, RowError):
            broken.append(item)
        else:
            rows.append(item)
    return Table(str(place), rows, broken)
