"""The recipe of a prepared set: sources with hashes, every step's options, seed and versions. The same recipe makes the same bytes."""

import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tunesmith import registry
from tunesmith.arguments import arguments
from tunesmith.data import files, sources
from tunesmith.data.spool import plain
from tunesmith.errors import InputError, did_you_mean

PACKAGE = "data.steps"
RESTORE = "restore"  # the one key of the section that is no step: rows that no step may drop, as FILE:ROW
_LIBRARIES = ("tunesmith", "numpy", "pyarrow", "rensa", "py3langid")
_OF_MODEL = ("tokenizers", "transformers")  # they count tokens, where a model is given

Section = dict[str, Any]
Recipe = dict[str, Any]
Entries = Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str


@cache
def all_steps() -> dict[str, ModuleType]:
    """Return every step by name, in the order in which they run."""
    modules = {name: registry.load(PACKAGE, name) for name in registry.names(PACKAGE)}
    return dict(sorted(modules.items(), key=lambda item: (item[1].ORDER, item[0])))


def check_section(section: Any, where: str = "prepare") -> Section:
    """Return the `prepare` section with every step and option: {step: {options} or False}, and `restore`.

    A step is on by its module's DEFAULT, by true, or by options. InputError in one sentence for an unknown step or option, a
    wrong value, and whatever the step's own `check` finds. Checking it again changes nothing.
    """
    section = {} if section is None or section is True else section
    if not isinstance(section, Mapping):
        raise InputError(
            f"{where} is {section!r}, expected steps, such as {{quality: true, language: {{keep: [en]}}}}."
        )
    steps = all_steps()
    for key in section:
        if key not in steps and key != RESTORE:
            raise InputError(f'{where}: there is no step "{key}".{did_you_mean(str(key), steps)}')
    found: Section = {
        name: _options(module, section.get(name, module.DEFAULT), f"{where}: {name}") for name, module in steps.items()
    }
    for name, options in found.items():
        check = getattr(steps[name], "check", None)
        if options is not False and check is not None:
            wanted = inspect.signature(check).parameters
            check(**{k: v for k, v in options.items() if k in wanted or _takes_all(wanted)})
    return found | {RESTORE: _restored(section.get(RESTORE), where)}


def _options(module: ModuleType, given: Any, where: str) -> dict[str, Any] | Literal[False]:
    if given is False:
        return False
    given = {} if given is True or given is None else given
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {given!r}, expected true, false or a mapping of options.")
    apply = module.apply
    checked = arguments(apply, given, where, skip=("rows",), inferred=("seed",))
    defaults = {
        name: p.default
        for name, p in inspect.signature(apply).parameters.items()
        if name not in ("rows", "seed") and p.default is not inspect.Parameter.empty
    }
    found: dict[str, Any] = plain({**defaults, **checked})
    return found


def with_seed(module: ModuleType, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return a step's options with the pipeline's seed, where it takes one and was given none of its own."""
    takes = "seed" in inspect.signature(module.apply).parameters
    return {**({"seed": seed} if takes else {}), **options}


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _restored(given: Any, where: str) -> list[str]:
    given = [] if given is None else given
    if not isinstance(given, list) or not all(isinstance(g, str) and g.rpartition(":")[2].isdecimal() for g in given):
        raise InputError(f"{where}: restore should be a list of rows as [rows.jsonl:12], found {given!r}.")
    return sorted(set(given), key=lambda g: (g.rpartition(":")[0], int(g.rpartition(":")[2])))


def make(entries: Entries, section: Section, seed: int, model: str | None = None) -> Recipe:
    """Return the recipe, JSON-able, with the SHA-256 of every source and of every file an option names.

    `section` is checked already. InputError where a source is not there.
    """
    listed = [entries] if isinstance(entries, (str, Mapping)) else list(entries)
    data = [{"path": str(e)} if isinstance(e, (str, Path)) else dict(e) for e in listed]
    found = [hashed(place) for source in sources.parse(data) for place in sources.places(source)[0]]
    options = [
        value
        for name, given in section.items()
        if isinstance(given, dict)
        for option, value in given.items()
        if option
        not in getattr(all_steps()[name], "WRITES", ())  # what a step writes is no part of what it was made from
    ]
    tokenizer = Path(model or "").glob("tokenizer*.json") if model is not None and Path(model).is_dir() else ()
    marks = {
        name: mark for name, given in section.items() if isinstance(given, dict) and (mark := _secret(name, given))
    }
    named = sorted({*(file for value in options for file in _files_in(value)), *tokenizer})
    return {
        "data": data,
        "prepare": section,
        "seed": seed,
        "model": model,
        "sources": found,
        "files": [hashed(files.Place(file)) for file in named],
        "versions": versions(model is not None),
        **({"secrets": marks} if marks else {}),
    }


def _secret(name: str, options: Mapping[str, Any]) -> str | None:
    """Return the mark of a secret that a step takes from the environment: what it is decides the bytes, and it is written nowhere."""
    mark: str | None = getattr(all_steps().get(name), "secret", lambda _: None)(options)
    return mark


def hashed(place: files.Place) -> dict[str, Any]:
    """Return {"path", "sha256", "bytes"} of a file; of a data set of the hub the hash of its rows."""
    digest = hashlib.sha256()
    if place.path is None:
        size = 0
        for item in files.stream(place):
            line = json.dumps(item[1] if isinstance(item, tuple) else str(item), default=str, sort_keys=True).encode()
            digest.update(line + b"\n")
            size += len(line) + 1
        return {"path": str(place), "sha256": digest.hexdigest(), "bytes": size}
    try:
        with place.path.open("rb") as f:
            while piece := f.read(1 << 20):
                digest.update(piece)
            return {"path": str(place), "sha256": digest.hexdigest(), "bytes": f.tell()}
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror or error}.") from error


def _files_in(value: Any) -> Iterator[Path]:
    """Yield the local files that an option names: their content decides as much as the option does."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _files_in(item)
    elif isinstance(value, dict):
        yield from _files_in(list(value.values()))
    elif isinstance(value, str) and ("/" in value or "." in value):
        try:
            yield from (place.path for place in files.expand(value)[0] if place.path is not None)
        except (InputError, OSError, ValueError):
            return  # no file: the step's own check has looked at it


def versions(tokens: bool) -> dict[str, str]:
    """Return the versions of what decides a prepared set's bytes, of the libraries that are installed."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _LIBRARIES + (_OF_MODEL if tokens else ()):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def fingerprint(recipe: Recipe, layout: str = "") -> str:
    """Return the SHA-256 of the recipe and of tunesmith's own code that reads and prepares."""
    return hashlib.sha256(f"{json.dumps(recipe, sort_keys=True)}\n{layout}\n{_code()}".encode()).hexdigest()


@cache
def _code() -> str:
    """Return the hash of this package's source: what the code does may change between two versions of one number."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for file in sorted([*here.rglob("*.py"), *here.rglob("*.txt")]):
        digest.update(f"{file.relative_to(here)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return in words what differs between two recipes, keys in order: "prepare.quality.least 10, now 20"."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key} {_shown(before.get(key))}, now {_shown(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) and "sha256" in v for v in value):
        for item in value:
            yield f"{key}: {item['path']}", f"of {item['bytes']:,} bytes (sha256 {item['sha256'][:12]})"
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{key}[{i}]")
    else:
        yield key, value


def _shown(value: Any) -> str:
    text = "not there" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def load(path: str) -> Recipe:
    """Return the recipe in a card.json, a recipe.yaml or the folder of a prepared set; InputError where it holds none."""
    from tunesmith.run_file import load_file

    place = Path(path)
    file = place / "card.json" if place.is_dir() else place
    if file.suffix != ".json":
        found: Any = load_file(str(file))
    else:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise InputError(f"{file} is no data card: it is broken JSON ({error}).") from error
        found = found.get("recipe") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not {"data", "prepare", "sources", "seed"} <= set(found):
        raise InputError(f"{path} holds no recipe; `tunesmith data prepare` writes it to card.json and recipe.yaml.")
    for key, what, right in _SHAPE:
        if not right(found.get(key, [])):
            raise InputError(f"{path}: the recipe's {key} should be {what}, found {_shown(found[key])}.")
    return found


def _all_hashed(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) and {"path", "sha256", "bytes"} <= set(v) for v in value)


_SHAPE: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("data", "a list of sources", lambda v: isinstance(v, list) and all(isinstance(s, dict) for s in v)),
    ("prepare", "steps with their options", lambda v: isinstance(v, dict)),
    ("seed", "a whole number from 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    ("sources", "a list of {path, sha256, bytes}", _all_hashed),
    ("files", "a list of {path, sha256, bytes}", _all_hashed),
)


def asked(given: Sequence[str], settings: Sequence[str]) -> tuple[Entries, Section, int]:
    """Return (data, prepare section, seed) of the command line: sources, or one run file; `settings` as step.option=value."""
    from tunesmith.run_file import assign, load_file

    entries: Entries = list(given)
    content: dict[str, Any] = {}
    seed = 0
    if any(_is_yaml(g) for g in given):
        if len(given) > 1:
            raise InputError(
                f"{next(g for g in given if _is_yaml(g))} is a run file, which names its data itself; give it alone."
            )
        run = load_file(given[0])
        if not run.get("data"):
            raise InputError(f'{given[0]} has no "data" section; name the sources there.')
        entries, content = run["data"], run.get("prepare") or {}
        train = run.get("train")
        seed = train.get("seed", 0) if isinstance(train, dict) else 0
        content = {} if content is True else content
        if not isinstance(content, dict):
            check_section(content, f"{given[0]}: prepare")
    for setting in settings:
        assign(content, setting.removeprefix("prepare."))
    return entries, content, seed


def of_recipe(given: Sequence[str]) -> Recipe | None:
    """Return the recipe that the one source named on the command line holds, None where it is data or a run file."""
    if len(given) != 1:
        return None
    path = Path(given[0])
    if path.name == "card.json":
        return load(given[0])
    if _is_yaml(given[0]):
        from tunesmith.run_file import load_file

        return load(given[0]) if "sources" in load_file(given[0]) else None
    return None


def _is_yaml(path: str) -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")


def check_sources(old: Recipe, new: Recipe) -> None:
    """InputError naming the first source (or file of an option) that is no longer what the recipe was made with."""
    for kind in ("sources", "files"):
        now = {s["path"]: s for s in new[kind]}
        for source in old.get(kind, []):
            if source["path"] not in now:
                raise InputError(f"the recipe was made with {source['path']}, which its data no longer names.")
            if now[source["path"]]["sha256"] != source["sha256"]:
                raise InputError(
                    f"{source['path']} has changed since the recipe was made (sha256 {source['sha256'][:12]}…, now "
                    f"{now[source['path']]['sha256'][:12]}…): the same set cannot be made from it; bring the file back, or "
                    "prepare it anew without the recipe."
                )
