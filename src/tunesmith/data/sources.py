"""The data of a run: several sources, each a file, a folder, a pattern or a hub id, with a weight; read, converted and counted."""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith import registry
from tunesmith.data import detect, files, lazy, load_file
from tunesmith.data.load_file import FileInfo
from tunesmith.data.mixing import Share
from tunesmith.data.records import KINDS, Record
from tunesmith.errors import InputError, did_you_mean

KEYS = (
    "path", "name", "split", "format", "columns", "labels", "as", "weight", "cap", "objective", "general", "licence",
)  # fmt: skip

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of the run file's `data`, checked. `weight` 3: each row three times an epoch; 0.5: half of the rows.

    cap: the most rows an epoch takes of it; objective: its own, where it differs from the run's; general: it is there against
    forgetting (see data/mixing.py). name: the config of a data set of the hub. labels: what each label is called. kind (the
    key `as`): the kind of record that is made of its rows. licence: words for the data card.
    """

    path: str
    weight: float = 1.0
    format: str | None = None
    columns: dict[str, str] | None = None
    split: str = "train"
    cap: int | None = None
    objective: str | None = None
    general: bool = False
    name: str | None = None
    labels: dict[str, str] | None = None
    kind: str | None = None
    licence: str | None = None

    @property
    def share(self) -> Share:
        """What it asks for in an epoch."""
        return Share(self.weight, self.cap, self.general)

    @property
    def headless(self) -> bool:
        """Whether its columns are named by their places: a CSV file then has no header."""
        return bool(self.columns) and all(column.isdigit() for column in (self.columns or {}).values())


@dataclass(frozen=True)
class Loaded:
    """records (N,) in file order, each row once; source (N,), the index into `sources` of each; notices for people.

    The records of large sets are made when they are asked for (data/lazy.py).
    """

    records: Sequence[Record]
    source: Indices
    sources: list[Source]
    files: list[FileInfo]
    notices: list[str]

    @property
    def kinds(self) -> set[str]:
        """The kinds of record there are: "text", "chat", ..."""
        return {kind for info in self.files for kind in info.kinds}


def parse(entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str) -> list[Source]:
    """Return the checked sources of a run file's `data` (a path, one mapping, or a list of them); reads no file."""
    listed = [entries] if isinstance(entries, (str, Path, Mapping)) else list(entries)
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
    path = entry.get("path")
    if not isinstance(path, (str, Path)) or not str(path):
        raise InputError(f'{where} needs "path": a file, a folder, a pattern or a hub id.')
    where = f"{where} ({path})"
    return Source(
        str(path),
        _weight(entry.get("weight", 1.0), where),
        _one_of(entry.get("format"), "format", detect.all_formats(), where),
        None if entry.get("columns") is None else detect.check_columns(entry["columns"], where),
        _words(entry.get("split", "train"), "split", "a name such as train", where) or "train",
        _cap(entry.get("cap"), where),
        _one_of(entry.get("objective"), "objective", registry.names("training.objectives"), where),
        _flag(entry.get("general", False), where),
        _words(entry.get("name"), "name", "the config of a data set of the hub, such as main", where),
        None if entry.get("labels") is None else detect.check_labels(entry["labels"], where),
        _one_of(entry.get("as"), "kind of record", KINDS.values(), where, "as"),
        _words(entry.get("licence"), "licence", "words such as CC BY 4.0", where),
    )


def _weight(weight: Any, where: str) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1000:
        raise InputError(f'{where}: "weight" is {weight!r}, expected a number above 0 (2 shows every row twice).')
    return float(weight)


def _cap(cap: Any, where: str) -> int | None:
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise InputError(f'{where}: "cap" is {cap!r}, expected a whole number of rows above 0.')
    return cap


def _flag(general: Any, where: str) -> bool:
    if not isinstance(general, bool):
        raise InputError(f'{where}: "general" is {general!r}, expected true or false.')
    return general


def _one_of(value: Any, what: str, known: Iterable[str], where: str, key: str = "") -> str | None:
    if value is not None and (not isinstance(value, str) or value not in known):
        said = f' (key "{key}")' if key else ""
        raise InputError(f'{where}: there is no {what} "{value}"{said}.{did_you_mean(str(value), known)}')
    return value


def _words(value: Any, key: str, expected: str, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f'{where}: "{key}" is {value!r}, expected {expected}.')
    return value


def places(source: Source) -> tuple[list[files.Place], list[str]]:
    """Return the places of a source and notices; InputError where there are none. Reads no row."""
    found, notices = files.expand(source.path, source.split, source.name)
    return [replace(place, headless=source.headless) for place in found], notices


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
def load(
    entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str, reads: Sequence[type] | None = None
) -> Loaded:
    """Read every source; InputError naming file, row and field at the first thing that is wrong.

    reads: the kinds of record that are kept where a file's rows make several, of which one is among them (a log of chats, a
    tree); a notice tells how many were left out. A source with an objective of its own keeps what that reads.
    """
    sources = parse(entries)
    expanded = [places(source) for source in sources]  # a missing file is said before any is read
    large = sum(load_file.size(place) for found, _ in expanded for place in found) > load_file.LARGE
    parts: list[Sequence[Record]] = []
    infos: list[FileInfo] = []
    notices: list[str] = []
    for i, (source, (found, said)) in enumerate(zip(sources, expanded, strict=True)):
        notices += said
        wanted = _wanted(source, reads)
        loaded = [load_file.load_file(place, source, i, large, wanted) for place in found]
        for n in _unasked([info for info, _ in loaded], source, wanted):
            loaded[n] = load_file.load_file(found[n], replace(source, kind="verdict"), i, large, wanted)
            notices.append(
                f"{found[n]}: its preferences are read as verdicts, the best answers good and the others bad"
            )
        for info, records in loaded:
            parts.append(records)
            infos.append(info)
            notices += describe(info, source)
    index = np.repeat([info.source for info in infos], [info.records for info in infos]).astype(np.int64)
    lists = [part for part in parts if isinstance(part, list)]
    records = [r for part in lists for r in part] if len(lists) == len(parts) else lazy.Joined(parts)
    return Loaded(records, index, sources, infos, notices)


def _wanted(source: Source, reads: Sequence[type] | None) -> list[str] | None:
    if reads is None:
        return None
    own: Any = registry.load("training.objectives", source.objective) if source.objective else None
    return [KINDS[kind] for kind in (own.reads if own else reads) if kind in KINDS]


def _unasked(infos: Sequence[FileInfo], source: Source, wanted: Sequence[str] | None) -> list[int]:
    """Return the numbers of a source's files of preferences, which are read as verdicts where it has nothing else for who wants those."""
    if source.kind is not None or wanted is None or "verdict" not in wanted:
        return []
    if any(not info.kinds.keys().isdisjoint(wanted) for info in infos):
        return []
    return [n for n, info in enumerate(infos) if info.kinds.keys() == {"preference"}]


def describe(info: FileInfo, source: Source) -> list[str]:
    """Say in a sentence what a file was read as, in another one what of it was left out."""
    weight = "" if source.weight == 1 else f", weight {source.weight:g}"
    kept = f"; not in the text: {', '.join(info.fields_kept[:6])}" if info.fields_kept else ""
    all_ = info.records + sum(info.left_out.values())
    made = "" if all_ == info.rows and source.kind is None else f", read as {_counted(info.kinds | info.left_out)}"
    rows = f"{info.rows:,} row{'s' * (info.rows != 1)}"
    said = [f"{info.path}{info.cut}: {rows} of the format {info.format} ({info.why}){made}{weight}{kept}"]
    if info.left_out:
        said.append(f"{info.path}: left out, because the objective does not read it: {_counted(info.left_out)}")
    return said


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing"


def check_objective(loaded: Loaded, objective: str, reads: Sequence[type]) -> None:
    """InputError, in one sentence with the remedy, where a file holds records of a kind the objective cannot read."""
    wanted = [KINDS.get(kind, kind.__name__.lower()) for kind in reads]
    for info in loaded.files:
        wrong = next((kind for kind in info.kinds if kind not in wanted), None)
        if wrong is not None:
            remedy = _remedy(wrong, wanted)
            raise InputError(
                f"{info.path} holds {wrong} rows; the objective {objective} reads {' or '.join(wanted)}.{remedy}"
            )


_READ_AS = {
    ("preference", "chat"): "the best answer to each prompt",
    ("preference", "verdict"): "its best answers good, the others bad",
    ("preference", "prompt"): "its prompts",
    ("verdict", "chat"): "its good answers",
    ("verdict", "prompt"): "its prompts",
    ("prompt", "chat"): "its prompts with their reference answers",
    ("chat", "prompt"): "its last answers as references",
}
_NEEDS = {"preference": "prompt, chosen and rejected", "verdict": "prompt, completion and a true or false label"}


def _remedy(found: str, wanted: Sequence[str]) -> str:
    for kind in wanted:
        if (found, kind) in _READ_AS:
            return f" Read it as one with `as: {kind}` in its data entry ({_READ_AS[found, kind]})."
    if found == "verdict" and "preference" in wanted:
        return " Train on verdicts with --objective kto, or give rows with prompt, chosen and rejected."
    needed = next((_NEEDS[kind] for kind in wanted if kind in _NEEDS), None)
    if found == "text" and (needed is None or "chat" in wanted):
        pretrain = "pretrain" in registry.names("training.objectives") and "chat" in wanted
        return f" {'Train on plain text with --objective pretrain, or give' if pretrain else 'Give'} rows with questions and answers."
    return f" Give rows with {needed}." if needed else ""
