"""Reading files into rows: JSON, JSONL, CSV, TSV, Parquet, text, folders of them, and data sets of the hub."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.formats._common import RowError, json_type
from tunesmith.data.records import Origin
from tunesmith.errors import InputError, did_you_mean
from tunesmith.masking import clean

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TEXTS = (".txt", ".md")
# An escape of a surrogate that stands alone (and backslashes that only look like one, which is seen when the row is looked at).
_HALF = re.compile(r"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_TEXT = {  # how files begin that are no UTF-8 text
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16; save it as UTF-8"),
    **dict.fromkeys((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "compressed; unpack it first"),
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or export it as CSV, first",
    b"PAR1": "Parquet; give it the ending .parquet",
}
_SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows with their numbers from 1 (JSONL: the line; CSV: counted below the header), and the broken ones."""

    file: str
    rows: list[tuple[int, dict[str, Any]]]
    broken: list[RowError] = field(default_factory=list)


def expand(path: str, split: str = "train") -> tuple[list[Path | str], list[str]]:
    """Return the files that `path` means (a hub id stays a string) and notices; InputError where there are none."""
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder(place, split)
    if place.is_file():
        if place.suffix.lower() not in TABLES + TEXTS:
            raise InputError(f"{path} is no data file tunesmith reads; known endings: {', '.join(TABLES + TEXTS)}.")
        return [place], []
    if place.is_symlink():
        raise InputError(f"{path} is a link to {place.readlink()}, which leads to no file.")
    if place.exists():
        raise InputError(f"{path} is a pipe or a device; data is read from files: save it as one.")
    if "://" in path:
        raise InputError(
            f"{clean(path)} is an address; data is read from files and the hub: download it, then name the file."
        )
    named = place.suffix.lower() in TABLES + TEXTS
    local = named or path.startswith((".", "/", "~")) or Path(path.split("/")[0]).is_dir()
    if not local and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        return [path], []
    nearby = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
    hint = did_you_mean(place.name, [n for n in nearby if not n.startswith(".")]) if nearby else ""
    raise InputError(f"there is no data file {path}.{hint}")


def _folder(place: Path, split: str) -> tuple[list[Path | str], list[str]]:
    found = [
        p
        for p in sorted(place.rglob("*"))
        if p.is_file() and not any(s.startswith(".") for s in p.relative_to(place).parts)
    ]
    files = [p for p in found if p.suffix.lower() in TABLES]
    notices = []
    if not files:
        files = [p for p in found if p.suffix.lower() in TEXTS]
    if not files:
        raise InputError(f"the folder {place} holds no data files ({', '.join(TABLES + TEXTS)}).")
    of_split = {p: _split_of(p.relative_to(place)) for p in files}
    split = _SPLITS.get(split, split)
    chosen = [p for p in files if of_split[p] == split]
    if not chosen and split == "train":
        chosen = [p for p in files if of_split[p] is None]  # data.jsonl beside test.jsonl
    left = [str(p.relative_to(place)) for p in files if p not in chosen]
    if chosen and left and (split != "train" or any(of_split[p] not in (split, None) for p in files)):
        notices.append(
            f'{place}: read as split "{split}"; left out: {", ".join(left[:5])}{" …" if len(left) > 5 else ""}.'
        )
        files = chosen
    return list(files), notices


def _split_of(path: Path) -> str | None:
    for part in (path.stem, *path.parts[:-1]):
        first = re.split(r"[-_.]", part.lower())[0]
        if first in _SPLITS:
            return _SPLITS[first]
    return None


def read(file: Path | str, split: str = "train") -> Table:
    """Return a file's (or hub data set's) rows, the broken ones listed; RowError where it cannot be read at all."""
    if isinstance(file, str):
        return _hub(file, split)
    name, suffix = str(file), file.suffix.lower()
    try:
        if suffix == ".parquet":
            table = _parquet(file)
        else:
            content = _decode(file.read_bytes(), name)
            if not content.strip():
                raise RowError(Origin(name, 0), None, "empty_file", "the file is empty.")
            if suffix in TEXTS:
                table = Table(name, [(1, {"text": content})])
            elif suffix in (".csv", ".tsv"):
                table = _csv(content, name, "\t" if suffix == ".tsv" else ",")
            elif suffix == ".json" or content.lstrip().startswith("["):
                table = _json(content, name)
            else:
                table = _jsonl(content, name)
            if _HALF.search(content):
                table = _without_halves(table)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.") from error
    if not table.rows and not table.broken:
        raise RowError(Origin(name, 0), None, "empty_file", "the file holds no rows.")
    return table


def _without_halves(table: Table) -> Table:
    """Sort out the rows with a character that JSON's escapes left half of, which no tokenizer takes."""
    whole, broken = [], list(table.broken)
    for number, row in table.rows:
        half = _SURROGATE.search(json.dumps(row, ensure_ascii=False, default=str))
        if half is None:
            whole.append((number, row))
        else:
            found = f"\\u{ord(half[0]):04x} is half of a character (a pair of such escapes makes one); remove it or mend it."
            broken.append(RowError(Origin(table.file, number), None, "half_character", found))
    return Table(table.file, whole, sorted(broken, key=lambda e: e.origin.row))


def _decode(data: bytes, name: str) -> str:
    for magic, what in _NO_TEXT.items():
        if data.startswith(magic):
            raise RowError(Origin(name, 0), None, "not_text", f"the file is {what}.")
    if b"\0" in data[:1000]:
        what = "no text (it has zero bytes, as UTF-16 has); save it as UTF-8"
        raise RowError(Origin(name, 0), None, "not_text", f"the file is {what}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RowError(
            Origin(name, line),
            None,
            "not_utf8",
            f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8.",
        ) from None


def _sort_out(items: Iterator[tuple[int, Any]], name: str, broken: list[RowError]) -> Table:
    rows = []
    listed = list(items)
    if listed and not broken and all(isinstance(item, str) for _, item in listed):
        return Table(name, [(number, {"text": item}) for number, item in listed])  # a list of strings is texts
    for number, item in listed:
        if isinstance(item, dict):
            rows.append((number, item))
        else:
            found = f'the row is {json_type(item)}, expected an object such as {{"text": ...}}.'
            broken.append(RowError(Origin(name, number), None, "not_object", found))
    broken.sort(key=lambda e: e.origin.row)
    return Table(name, rows, broken)


def _jsonl(content: str, name: str) -> Table:
    broken: list[RowError] = []

    def lines() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(content.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    broken.append(_broken(name, number, error, f"line {number}"))

    return _sort_out(lines(), name, broken)


def _broken(name: str, row: int, error: Exception, where: str) -> RowError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
    return RowError(Origin(name, row), None, "broken_json", f"{where} is broken JSON ({reason}).")


def _json(content: str, name: str) -> Table:
    try:
        whole = json.loads(content)
    except RecursionError as error:
        raise _broken(name, 0, error, "the file") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or not content.lstrip().startswith("["):
            lines = _jsonl(content, name)  # JSON lines under the name .json
            if lines.rows:
                return lines
        return _json_until_broken(content, name, error)
    return _sort_out(enumerate(_list_in(whole, name), 1), name, [])


def _list_in(whole: Any, name: str) -> list[Any]:
    """Return the rows in a JSON document: the list itself, its "data", its only list of objects, or itself as one."""
    from tunesmith.data.detect import best_match

    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict):
        if isinstance(whole.get("data"), list):
            return list(whole["data"])
        if best_match(whole):
            return [whole]
        lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(lists) == 1:
            return list(lists[0])
    message = f'the file holds {json_type(whole)}, expected a list of rows or {{"data": [rows]}}.'
    raise RowError(Origin(name, 0), None, "not_a_list", message)


def _json_until_broken(content: str, name: str, error: json.JSONDecodeError) -> Table:
    """Return the rows before the place where a JSON list breaks, which is named by row and line."""
    decoder, items, at = json.JSONDecoder(), [], content.find("[") + 1
    space = re.compile(r"[\s,]*")
    while at and (start := space.match(content, at).end()) < error.pos:  # type: ignore[union-attr]
        try:
            item, at = decoder.raw_decode(content, start)
        except ValueError:
            break
        items.append(item)
    line = f"line {error.lineno} of the file"
    return _sort_out(enumerate(items, 1), name, [_broken(name, len(items) + 1, error, line)])


def _csv(content: str, name: str, delimiter: str) -> Table:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[RowError] = []
    header: list[str] = []
    number = 0
    try:
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            number += 1
            if len(values) == len(header):
                rows.append((number, dict(zip(header, values, strict=True))))
            else:
                columns = f"{len(header)} ({', '.join(header[:6])})"
                found = f"line {reader.line_num} has {len(values)} values, the header has {columns}."
                broken.append(RowError(Origin(name, number), None, "wrong_columns", found))
    except csv.Error as error:
        broken.append(
            RowError(Origin(name, number + 1), None, "broken_csv", f"line {reader.line_num} is broken CSV ({error}).")
        )
    return Table(name, rows, broken)


def _parquet(file: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:  # a damaged footer is an OSError of pyarrow's
        first = str(error).splitlines()[0].rstrip(". ")
        raise RowError(
            Origin(str(file), 0), None, "broken_parquet", f"the file is no readable Parquet ({first})."
        ) from None
    return Table(str(file), list(enumerate(rows, 1)))


def _hub(name: str, split: str) -> Table:
    from tunesmith.model.loading import offline, unreachable

    try:
        import datasets
    except ImportError:
        raise InputError(
            f'"{name}" is no local file, and reading it from the hub needs one more package: '
            "pip install 'tunesmith[hub]'."
        ) from None
    try:
        with offline() if unreachable(name) else contextlib.nullcontext():
            rows = datasets.load_dataset(name, split=split)
        listed = [dict(row) for row in rows]
    except Exception as error:  # a loader of many backends: whatever it raises, the user's remedy is in its first line
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f'"{name}" is no local file, and the hub did not give it (split "{split}"): {first[:200]}. '
            "Check the name and the network, or give a local file."
        ) from None
    if not listed:
        raise InputError(f'the data set "{name}" has no rows in its split "{split}".')
    return Table(name, list(enumerate(listed, 1)))
