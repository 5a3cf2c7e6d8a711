"""The data of a run: several sources, each a file, a folder or a hub id, with a weight; read, converted and counted."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith import registry
from tunesmith.data import detect, files
from tunesmith.data.records import Chat, Origin, Record, Text
from tunesmith.errors import InputError, did_you_mean

KEYS = ("path", "weight", "format", "columns", "split")
_KINDS = {Text: "text", Chat: "chat"}
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of the run file's `data`, checked. `weight` 3: each row three times an epoch; 0.5: half of the rows."""

    path: str
    weight: float = 1.0
    format: str | None = None
    columns: dict[str, str] | None = None
    split: str = "train"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What one file was read as: format's name, why it was taken for that, rows, and the index of its source."""

    path: str
    source: int
    format: str
    why: str
    rows: int
    fields_kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """records (N,) in file order, each row once; source (N,), the index into `sources` of each; notices for people."""

    records: list[Record]
    source: Indices
    sources: list[Source]
    files: list[FileInfo]
    notices: list[str]

    def epoch(self, rows: Indices, seed: int, epoch: int = 0) -> Indices:
        """Return the indices to train on in one epoch, (M,): `rows` repeated by their source's weight, not shuffled.

        A weight of 2.5 is each row twice and half of the rows once more: which half is drawn from `seed`, and the next
        epoch takes the next ones, so that every row is seen as often as any other in the long run.
        """
        parts = []
        for index, source in enumerate(self.sources):
            mine = rows[self.source[rows] == index]
            whole = int(source.weight)
            more = round((source.weight - whole) * len(mine))
            if not whole and len(mine):
                more = max(more, 1)
            order = np.random.default_rng([seed, index]).permutation(len(mine))
            extra = mine[np.sort(order[(epoch * more + np.arange(more)) % max(len(mine), 1)])] if more else mine[:0]
            parts += [mine] * whole + [extra]
        return np.concatenate(parts) if parts else rows[:0]

    @property
    def kinds(self) -> set[str]:
        """The kinds of record there are: "text", "chat"."""
        return {_KINDS[type(r)] for r in self.records}


def parse(entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str) -> list[Source]:
    """Return the checked sources of a run file's `data` (a path, one mapping, or a list of them); reads no file."""
    listed = [entries] if isinstance(entries, (str, Mapping)) else list(entries)
    if not listed:
        raise InputError("data names no source; give at least one file, folder or hub id.")
    return [_parse(entry, f"data[{i}]" if len(listed) > 1 else "data") for i, entry in enumerate(listed)]


def _parse(entry: Any, where: str) -> Source:
    entry = {"path": entry} if isinstance(entry, (str, Path)) else entry
    if not isinstance(entry, Mapping):
        raise InputError(
            f"{where} is {type(entry).__name__}, expected a path or a mapping such as {{path: data.jsonl}}."
        )
    for key in entry:
        if key not in KEYS:
            raise InputError(f'{where} has the unknown key "{key}".{did_you_mean(str(key), KEYS)}')
    path, weight, name = entry.get("path"), entry.get("weight", 1.0), entry.get("format")
    if not isinstance(path, (str, Path)) or not str(path):
        raise InputError(f'{where} needs "path": a file, a folder or a hub id.')
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1000:
        raise InputError(
            f'{where} ({path}): "weight" is {weight!r}, expected a number above 0 (2 shows every row twice).'
        )
    if name is not None and (not isinstance(name, str) or name not in detect.all_formats()):
        raise InputError(
            f'{where} ({path}): there is no format "{name}".{did_you_mean(str(name), detect.all_formats())}'
        )
    split = entry.get("split", "train")
    if not isinstance(split, str) or not split:
        raise InputError(f'{where} ({path}): "split" is {split!r}, expected a name such as train.')
    columns = entry.get("columns")
    checked = None if columns is None else detect.check_columns(columns, f"{where} ({path})")
    return Source(str(path), float(weight), name, checked, split)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk all rows again and again while they are made, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def load(entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str) -> Loaded:
    """Read every source; InputError naming file, row and field at the first thing that is wrong."""
    sources = parse(entries)
    expanded = [
        files.expand(source.path, source.split) for source in sources
    ]  # a missing file is said before any is read
    records: list[Record] = []
    index: list[int] = []
    infos: list[FileInfo] = []
    notices: list[str] = []
    for i, (source, (found, said)) in enumerate(zip(sources, expanded, strict=True)):
        notices += said
        for file in found:
            info, converted = _load_file(file, source, i)
            records += converted
            index += [i] * len(converted)
            infos.append(info)
            notices.append(describe(info, source))
    return Loaded(records, np.array(index, dtype=np.int64), sources, infos, notices)


def _load_file(file: Path | str, source: Source, index: int) -> tuple[FileInfo, list[Record]]:
    table = files.read(file, source.split)
    if table.broken:
        raise table.broken[0]
    name, why, rows = detected(table, source)
    records = [detect.convert(row, Origin(table.file, n), name, source.format is not None) for n, row in rows]
    kept = tuple(sorted({key for record in records[:100] for key in record.extra}))
    return FileInfo(table.file, index, name, why, len(records), kept), records


def detected(table: files.Table, source: Source) -> tuple[str, str, list[tuple[int, dict[str, Any]]]]:
    """Return (format's name, why, rows under our fields' names)."""
    rows = table.rows
    if source.columns:
        rows = [(n, detect.rename(row, source.columns, Origin(table.file, n))) for n, row in rows]
    if source.format is not None:
        return source.format, "stated by you", rows
    name, why = detect.detect(rows, table.file)
    return name, why, rows


def describe(info: FileInfo, source: Source) -> str:
    """Say in one sentence what a file was read as."""
    weight = "" if source.weight == 1 else f", weight {source.weight:g}"
    kept = f"; not trained on: {', '.join(info.fields_kept[:6])}" if info.fields_kept else ""
    return (
        f"{info.path}: {info.rows:,} row{'s' * (info.rows != 1)} of the format {info.format} ({info.why}){weight}{kept}"
    )


def check_objective(loaded: Loaded, objective: str, reads: Sequence[type]) -> None:
    """InputError, in one sentence with the remedy, where a file holds records of a kind the objective cannot read."""
    wrong = next((r for r in loaded.records if not isinstance(r, tuple(reads))), None)
    if wrong is None:
        return
    kind, wanted = _KINDS[type(wrong)], " or ".join(_KINDS.get(r, r.__name__.lower()) for r in reads)
    remedy = ""
    if isinstance(wrong, Text):
        remedy = " Train on plain text with --objective pretrain, or give rows with questions and answers."
        if "pretrain" not in registry.names("training.objectives"):
            remedy = " Give rows with questions and answers."
    raise InputError(f"{wrong.origin.file} holds {kind} rows; the objective {objective} reads {wanted}.{remedy}")
