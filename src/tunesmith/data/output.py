"""The files of a prepared set: each living row in its split's file, and where every row went."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from tunesmith.data import kinds
from tunesmith.data.records import KINDS, Record
from tunesmith.data.rows import Rows
from tunesmith.data.spool import plain
from tunesmith.run import finite
from tunesmith.training import disk

SPLITS = ("train", "validation", "test")  # what the column "split" counts: 0, 1, 2
Seen = Callable[[int, Record], None]


@dataclass
class Written:
    """files: {"path", "split", "kind", "rows", "bytes", "sha256"} each. file (N,): the number of a record's file, -1 for none
    (with folds the one it is validated in); line (N,): its line there from 1.
    """

    files: list[dict[str, Any]]
    file: npt.NDArray[np.int32]
    line: npt.NDArray[np.int64]


class _File:
    """A file being written: bytes counted and hashed as they go by."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.bytes, self.digest = path, 0, 0, hashlib.sha256()
        self.file = path.open("wb")

    def write(self, line: bytes) -> int:
        """Write a line; return its number from 1."""
        if self.rows % 1000 == 0:
            disk.at(f"write {self.path.name}")
        self.file.write(line)
        self.digest.update(line)
        self.bytes += len(line)
        self.rows += 1
        return self.rows

    def close(self) -> None:
        self.file.close()
        disk.sync(self.path)


def write(rows: Rows, folder: Path, source: npt.NDArray[np.int16] | None, folds: int, seen: Seen) -> Written:
    """Write every living record to folder/[source-1/][fold-1/][chat/]train.jsonl and tell `seen` of it.

    The column "split" says which split (0 train, 1 validation, 2 test; without it all is train), "fold" in which of `folds`
    parts a training row is validated. Sub-folders per kind only where there are several kinds, per source only where `source`
    (N read,) is given: rows made of others go with the first of them.
    """
    count = len(rows.alive)
    columns = rows.columns
    split = columns["split"] if "split" in columns else np.zeros(count, dtype=np.float32)
    fold = columns.get("fold")
    files: dict[tuple[str, str, str, str], _File] = {}
    place, line = np.full(count, -1, dtype=np.int32), np.zeros(count, dtype=np.int64)
    numbers: dict[tuple[str, str, str, str], int] = {}
    try:
        for id_, record in rows:
            seen(id_, record)
            said = _line(record)
            of = "" if source is None else f"source-{_source(rows, id_, source) + 1}"
            kind = KINDS[type(record)]
            for where, name, home in _places(SPLITS[int(split[id_])], fold, folds, id_):
                key = (of, where, kind, name)
                if key not in files:
                    files[key] = _File(folder.joinpath(*filter(None, (of, where, kind)), f"{name}.jsonl"))
                    numbers[key] = len(numbers)
                number = files[key].write(said)
                if home:
                    place[id_], line[id_] = numbers[key], number
    finally:
        for file in files.values():
            file.file.close()
    for file in files.values():
        file.close()
    return _listed(folder, files, place, line)


def _places(split: str, fold: npt.NDArray[np.float32] | None, folds: int, id_: int) -> list[tuple[str, str, bool]]:
    """Return (sub-folder, file's name, is it the row's own place) of each file a row goes to."""
    if fold is None or split != "train":
        return [("", split, True)]
    own = int(fold[id_])
    return [(f"fold-{i + 1}", "validation" if i == own else "train", i == own) for i in range(folds)]


def _source(rows: Rows, id_: int, source: npt.NDArray[np.int16]) -> int:
    while id_ >= len(source):  # made by a step
        made = rows.history(id_)[0].facts.get("from_") or [0]
        id_ = made[0] if made[0] < id_ else 0
    return int(source[id_])


def _line(record: Record) -> bytes:
    row = kinds.to_row(record)
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = json.dumps(finite(plain(row)), ensure_ascii=False)
    return text.encode() + b"\n"


def _listed(
    folder: Path,
    files: dict[tuple[str, str, str, str], _File],
    place: npt.NDArray[np.int32],
    line: npt.NDArray[np.int64],
) -> Written:
    """Return what was written, in order of the names; a single kind's files move up out of its sub-folder."""
    single = len({kind for _, _, kind, _ in files}) == 1
    entries = []
    for (of, where, kind, name), file in files.items():
        path = file.path
        if single:
            path = path.parent.parent / path.name
            file.path.rename(path)
        facts = {"path": path.relative_to(folder).as_posix(), "split": name, "kind": kind}
        facts |= {"source": of} if of else {}
        facts |= {"fold": where} if where else {}
        entries.append(facts | {"rows": file.rows, "bytes": file.bytes, "sha256": file.digest.hexdigest()})
    for file in files.values():
        if single and file.path.parent.is_dir():
            file.path.parent.rmdir()
    order = sorted(range(len(entries)), key=lambda i: _order(entries[i]))
    new = np.full(len(entries) + 1, -1, dtype=np.int32)  # the last is for those without a file
    new[order] = np.arange(len(entries))
    return Written([entries[i] for i in order], new[place], line)


def _order(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (
        entry.get("source", ""),
        len(entry.get("fold", "")),
        entry.get("fold", ""),
        entry["kind"],
        SPLITS.index(entry["split"]),
    )


def write_text(path: Path, text: str) -> dict[str, Any]:
    """Write a small file and wait until it is on disk; return {"bytes", "sha256"}."""
    data = text.encode()
    return {"bytes": len(data), "sha256": disk.write(path, [data])}


def as_json(value: Any) -> str:
    """Return JSON as people can read it, its keys in their order."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n"


def as_yaml(value: Any) -> str:
    """Return YAML that reads back to the same."""
    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=120)
