"""Where rows are: what a path means. A file, a folder, a pattern, a data set of the hub; and which rows of it."""

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.errors import InputError, did_you_mean
from tunesmith.masking import clean

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
TEXTS = (".txt", ".md")
PACKED = (".gz", ".zst")
_CUT = re.compile(r"\[(-?\d+%?)?:(-?\d+%?)?\]$")
_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?::([\w.+-]+))?(?:@([\w.+-]+))?")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_ABOUT = (
    "dataset_info.json",
    "state.json",
    "dataset_dict.json",
    "dataset_infos.json",
)  # what `datasets` writes beside its rows
_SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows are meant, as Python slices: counted from 0, the end left out; from the end where negative, or in percent."""

    start: str | None = None
    stop: str | None = None

    def __str__(self) -> str:
        return f"[{self.start or ''}:{self.stop or ''}]"

    @property
    def counted(self) -> bool:
        """Say whether the number of rows must be known first."""
        return any(edge is not None and not edge.isdigit() for edge in (self.start, self.stop))

    def bounds(self, rows: int | None = None) -> tuple[int, int | None]:
        """Return (start, stop); stop None is the end. `rows`: how many there are, where `counted` says they are needed."""
        return _edge(self.start, rows) or 0, _edge(self.stop, rows)


def _edge(edge: str | None, rows: int | None) -> int | None:
    if edge is None or edge.isdigit():
        return None if edge is None else int(edge)
    assert rows is not None
    at = rows * int(edge[:-1]) // 100 if edge.endswith("%") else int(edge)
    return max(0, rows + at) if at < 0 else at


@dataclass(frozen=True, slots=True)
class Place:
    """One file, or one split of a data set of the hub (`hub`: owner/name), and which of its rows are meant.

    str() is its name without the rows meant, as messages give it. headless: a CSV file whose first line is a row; its
    columns are called "0", "1", ...
    """

    path: Path | None = None
    hub: str = ""
    config: str | None = None
    split: str = "train"
    cut: Cut | None = None
    headless: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        config = f":{self.config}" if self.config else ""
        return f"{self.hub}{config}{'' if self.split == 'train' else '@' + self.split}"

    @property
    def ending(self) -> str:
        """The file's ending without .gz or .zst: what is inside."""
        assert self.path is not None
        return endings(self.path)[0]

    @property
    def packed(self) -> str | None:
        """How the file is compressed: "gz", "zst" or None."""
        assert self.path is not None
        return endings(self.path)[1]


def endings(path: Path) -> tuple[str, str | None]:
    """Return (".jsonl", "gz") of x.jsonl.gz, (".jsonl", None) of x.jsonl; in small letters."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        return path.with_suffix("").suffix.lower(), suffix[1:]
    return suffix, None


def expand(path: str, split: str = "train", name: str | None = None) -> tuple[list[Place], list[str]]:
    """Return the places `path` means, and notices; InputError where there are none. Reads no row.

    `path` is a file, a folder, a pattern (data/*.jsonl, data/**/*.csv), or a data set of the hub: owner/name,
    owner/name:config, owner/name@split. Each may end with the rows meant: [:500], [100:200], [-50:], [:10%]; of several
    files, of each. `split` may end so too. `name` is the config of a data set of the hub.
    """
    split, of_split = _take_cut(split)
    whole, cut = (path, None) if _is_there(path) else _take_cut(path)
    if cut and of_split:
        raise InputError(f"{path}: both its end and the split say which rows are meant; keep one.")
    places, notices = _expand(whole, split, name)
    cut = cut or of_split
    if cut is None:
        return places, notices
    if len(places) > 1:
        notices = [*notices, f"{whole}: {cut} is taken of each of the {len(places)} files."]
    return [replace(place, cut=cut) for place in places], notices


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, no home
        return False


def _take_cut(text: str) -> tuple[str, Cut | None]:
    found = _CUT.search(text)
    if found is None:
        return text, None
    for edge in found.groups():
        if edge and edge.endswith("%") and abs(int(edge[:-1])) > 100:
            raise InputError(f"{text}: {edge} is no share of the rows; expected up to 100%.")
    cut = Cut(*found.groups())
    start, stop = (int(e.rstrip("%")) if e else None for e in found.groups())
    same_kind = len({(e or "").endswith("%") for e in found.groups()}) == 1
    if start is not None and stop is not None and same_kind and start >= stop and (start < 0) == (stop < 0):
        raise InputError(f"{text}: {cut} holds no rows; its end must be above its start.")
    return text[: found.start()], cut


def _expand(path: str, split: str, name: str | None) -> tuple[list[Place], list[str]]:
    if "\0" in path:
        raise InputError("a path of data holds a zero byte, which no file's name has.")
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"there is no data file {path}: the home folder it names is not known.") from None
    local = _local(path, place, split)
    if local is None:
        found = _HUB.fullmatch(path)
        if found is None:
            raise _missing(path, place)
        hub, config, of_split = found.groups()
        if name and config and name != config:
            raise InputError(f'{path}: its config is "{config}", but name says "{name}"; keep one.')
        return [Place(hub=hub, config=config or name, split=of_split or split)], []
    if name:
        raise InputError(f'{path}: "name" ({name}) is the config of a data set of the hub, and this is a local path.')
    return local


def _local(path: str, place: Path, split: str) -> tuple[list[Place], list[str]] | None:
    """Return the local places, None where `path` can only be a data set of the hub."""
    if _is_there(path):
        if place.is_dir():
            if (place / "recipe.yaml").is_file() and any(place.glob("fold-*")):
                raise InputError(
                    f"{place} holds folds, each with rows to train on and to validate on; name one: {place / 'fold-1'}."
                )
            return _chosen(place, _inside(place), split)
        if not place.is_file():
            raise InputError(f"{path} is a pipe or a device; data is read from files: save it as one.")
        _check_ending(path, place)
        return [Place(place)], []
    if _is_link(place):
        raise InputError(f"{path} is a link to {place.readlink()}, which leads to no file.")
    if "://" in path:
        raise InputError(
            f"{clean(path)} is an address; data is read from files and the hub: download it, then name the file."
        )
    if glob.has_magic(path):
        return _pattern(path, split)
    named = endings(place)[0] in TABLES + TEXTS
    if named or path.startswith((".", "/", "~")) or Path(path.split("/")[0]).is_dir():
        raise _missing(path, place)
    return None


def _is_link(place: Path) -> bool:
    try:
        return place.is_symlink()
    except OSError:
        return False


def _missing(path: str, place: Path) -> InputError:
    nearby = [p.name for p in place.parent.iterdir()] if _is_there(str(place.parent)) and place.parent.is_dir() else []
    hint = did_you_mean(place.name, [n for n in nearby if not n.startswith(".")]) if nearby else ""
    return InputError(f"there is no data file {path}.{hint}")


def _check_ending(path: str, place: Path) -> None:
    ending, packed = endings(place)
    if ending in TABLES + TEXTS:
        return
    if ending in _ARCHIVES:
        raise InputError(f"{path} is an archive ({ending}): unpack it and name the folder.")
    if packed and not ending:
        raise InputError(
            f"{path} does not say what is compressed; name it so, for example {place.stem}.jsonl.{packed}."
        )
    known = ", ".join(TABLES + TEXTS)
    raise InputError(f"{path} is no data file tunesmith reads; known endings: {known} (each also with .gz or .zst).")


def _pattern(path: str, split: str) -> tuple[list[Place], list[str]]:
    parts = Path(path).expanduser().parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matched = [Path(p) for p in sorted(glob.glob(str(Path(path).expanduser()), recursive=True))]
    files = [p for p in matched if p.is_file()] or [p for folder in matched for p in _inside(folder)]
    if not matched:
        single = re.search(r"\[(\d+%?)\]$", path)
        most = re.sub("^0", "1", single[1]) if single else ""
        hint = f" (The first rows are written {path[: single.start()]}[:{most}].)" if single else ""
        raise InputError(f"no file matches the pattern {path}.{hint}")
    return _chosen(fixed, files, split, f"the pattern {path} matches no data file")


def _inside(folder: Path) -> list[Path]:
    """Return a folder's files in order of their names, without hidden ones and what `datasets` writes about its rows."""
    found = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not any(s.startswith(".") for s in p.relative_to(folder).parts)
    ]
    saved = {p.parent: _saved(p) for p in found if p.name == "state.json"}
    prepared = {p.parent for p in found if p.name == "recipe.yaml"}  # sets that `data prepare` wrote
    arrow = any(p.suffix == ".arrow" for p in found)
    return [
        p
        for p in found
        if not (p.name in _ABOUT and arrow)
        and not (p.name in ("card.json", "lineage.parquet") and p.parent in prepared)
        and not (p.suffix == ".arrow" and saved.get(p.parent) and p.name not in saved[p.parent])
    ]


def _saved(state: Path) -> set[str]:
    """Return the names of the files with rows, by the state.json that `datasets` writes: caches may lie beside them."""
    try:
        return {str(file["filename"]) for file in json.loads(state.read_text())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _chosen(place: Path, found: list[Path], split: str, none: str = "") -> tuple[list[Place], list[str]]:
    """Return the files to read of those found under `place`: tables, else texts; of them those of the split."""
    files = [p for p in found if endings(p)[0] in TABLES] or [p for p in found if endings(p)[0] in TEXTS]
    if not files:
        raise InputError(f"{none or f'the folder {place} holds no data files'} ({', '.join(TABLES + TEXTS)}).")
    of_split = {p: _split_of(p.relative_to(place)) for p in files}
    wanted = _SPLITS.get(split, split)
    chosen = [p for p in files if of_split[p] == wanted]
    if not chosen and wanted == "train":
        chosen = [p for p in files if of_split[p] is None]  # data.jsonl beside test.jsonl
    others = sorted({s for s in of_split.values() if s})
    if not chosen and wanted != "train" and others:
        raise InputError(f'{place} has no files of the split "{split}"; it has {", ".join(others)}.')
    left = [str(p.relative_to(place)) for p in files if p not in chosen]
    if not (chosen and left and (wanted != "train" or any(of_split[p] not in (wanted, None) for p in files))):
        return _as_places(files), []
    shown = f"{', '.join(left[:5])}{' …' if len(left) > 5 else ''}"
    return _as_places(chosen), [f'{place}: read as split "{wanted}"; left out: {shown}.']


def _as_places(files: Iterable[Path]) -> list[Place]:
    return [Place(file) for file in files]


def _split_of(path: Path) -> str | None:
    for part in (path.stem, *path.parts[:-1]):
        first = re.split(r"[-_.]", part.lower())[0]
        if first in _SPLITS:
            return _SPLITS[first]
    return None
