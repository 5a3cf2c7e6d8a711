"""Preparing data: read, go through the steps, write the set and its card. Killed anywhere, the same call goes on.

run("rows.jsonl", {"quality": True}, "prepared", seed=0)       # what `tunesmith data prepare` does
prepared("rows.jsonl", {"quality": True}, seed=0)              # what training does: made once, then found again
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunesmith.data import card as cards
from tunesmith.data import card_html, ingest, lineage, output, work
from tunesmith.data import recipe as recipes
from tunesmith.data.recipe import Entries, Recipe, Section, check_section
from tunesmith.data.rows import Rows
from tunesmith.data.spool import plain
from tunesmith.errors import InputError
from tunesmith.run import finite
from tunesmith.training import disk

__all__ = ["check_section", "prepared", "rebuild", "run"]

Report = dict[str, Any]
Listener = Callable[[dict[str, Any]], None]
READ, STEPS = "read", "steps"  # the states kept in the work folder


def run(
    entries: Entries,
    section: Any,
    output: str | Path,
    seed: int = 0,
    listeners: Sequence[Listener] = (),
    model: str | None = None,
    force: bool = False,
) -> Report:
    """Prepare a set into the folder `output` and return {"output", "rows", "steps", "files", "splits", "seconds", "notices", "reused"}.

    entries as a run file's `data`, section as its `prepare`. A folder that this recipe made already is left as it is
    (reused); one that another made is refused, unless `force`. Listeners hear {"event": ..., ...}: continued, read, begin, step, written.
    InputError before anything is read for what is wrong with options, sources and the folder.
    """
    checked = check_section(section)
    target = _folder(output)
    _check_model(model)
    return _Preparing(recipes.make(entries, checked, seed, model), target, listeners, force).run()


def rebuild(recipe: Recipe, output: str | Path, listeners: Sequence[Listener] = (), force: bool = False) -> Report:
    """Prepare a set from the recipe of another, and return the report of `run`; a notice names versions that are others now.

    InputError naming the source that is no longer the same.
    """
    target = _folder(output)
    checked = check_section(recipe["prepare"], "the recipe: prepare")
    _check_model(recipe.get("model"))
    try:
        new = recipes.make(recipe["data"], checked, recipe["seed"], recipe.get("model"))
    except InputError as error:
        raise InputError(f"{error} (A recipe's paths are as they were given: call from the same folder.)") from error
    recipes.check_sources(recipe, new)
    others = recipes.differences(recipe.get("versions", {}), new["versions"])
    report = _Preparing(new, target, listeners, force).run()
    if others:
        report["notices"].append(f"the recipe was made with {', '.join(others)}: the bytes may be others")
    return report


def prepared(entries: Entries, section: Any, seed: int = 0, listeners: Sequence[Listener] = ()) -> Path:
    """Return the folder of the prepared set in the user's cache, made now unless the same sources, recipe and code made it before.

    In it each entry of `entries` has a folder of its own, source-1, source-2, ...
    """
    from tunesmith.data.cache import folder_of_cache

    recipe = recipes.make(entries, check_section(section), seed)
    try:
        folder = folder_of_cache()
    except RuntimeError as error:
        raise InputError(f"there is no folder for the prepared data ({error}); name one in TUNESMITH_CACHE.") from error
    name = recipes.fingerprint(recipe, "by source")[:32]
    target = folder.with_name("prepared") / name if folder.name == "tokens" else folder / "prepared" / name
    if not work.is_prepared(target):
        with contextlib.suppress(OSError):  # what is wrong with it is said below
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what the rows say
        _Preparing(recipe, target, listeners, force=True, by_source=True).run()
        work.prune(target)
    with contextlib.suppress(OSError):
        os.utime(target)  # it was used now
    return target


def _folder(output: str | Path) -> Path:
    """Return the output folder, where a link leads to it if it is one; InputError where it cannot be one."""
    target = Path(output).expanduser()
    target = target.resolve() if target.is_symlink() else target
    if target.exists() and not target.is_dir():
        raise InputError(f"the output {target} is a file; choose another --output.")
    if not target.name or target.name == "..":
        raise InputError(f"the output {target} has no name of its own; choose another --output.")
    return target


def _check_apart(recipe: Recipe, target: Path) -> None:
    """InputError where the set would be written among its sources, or over one: it would be its own source the next time."""
    place = target.resolve()
    around = next((e["path"] for e in recipe["data"] if _takes_in(str(e["path"]), place)), None)
    inside = next((s["path"] for s in recipe["sources"] if Path(s["path"]).resolve().is_relative_to(place)), None)
    if around or inside:
        raise InputError(
            f"the output {target} and the source {around or inside} lie in each other; choose another --output."
        )


def _takes_in(source: str, place: Path) -> bool:
    """Return whether a source, a folder or a pattern, will take in the files of a folder."""
    named = Path(source if Path(source).exists() else re.sub(r"\[[\d:%-]*\]$", "", source)).expanduser()
    if named.is_dir():
        return place.is_relative_to(named.resolve())
    return any(_matches(named.resolve().parts, (*place.parts, file)) for file in ("train.jsonl", "card.json"))


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Return whether a path is one of those a pattern means, both by their parts."""
    if not pattern or not path:
        return not pattern and not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[i:]) for i in range(len(path)))
    return fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


def _check_model(model: str | None) -> None:
    """InputError where there is no such model, or no tokenizer with it: known at the end only, it would cost all the steps."""
    if model is not None:
        from tunesmith.model.loading import load_tokenizer, resolve

        load_tokenizer(resolve(model))


class _Preparing:
    """One set being made: its recipe, the folder it goes to, and what happened so far."""

    def __init__(
        self, recipe: Recipe, target: Path, listeners: Sequence[Listener], force: bool, by_source: bool = False
    ) -> None:
        self.recipe, self.target, self.listeners = recipe, target, listeners
        self.force, self.by_source = force, by_source
        self.section: Section = recipe["prepare"]
        self.key = recipes.fingerprint(recipe, "by source" if by_source else "")
        self.notices: list[str] = []
        self.seconds: dict[str, float] = {}
        self.done: list[dict[str, Any]] = []
        _check_apart(recipe, target)
        self.stats = [_stat(source["path"]) for source in recipe["sources"]]

    def run(self) -> Report:
        finished = self._finished()
        if finished is not None and not work.beside(self.target).exists():
            return finished
        with work.opened(self.target, wait=self.by_source) as folder, self._one_sentence(folder):
            finished = self._finished()  # it was made while this process waited, or one was killed as it tidied up
            if finished is not None:
                work.discard(folder)
                return finished
            read, rows = self._resumed(folder) or self._read(folder)
            self._steps(folder, rows)
            card = self._write(folder, read, rows)
            work.swap_in(self.target)
        return self._report(card, reused=False)

    def _finished(self) -> Report | None:
        """Return the report of a set that is there already, whole, by this recipe; InputError where another is in its place."""
        if not self.target.is_dir() or not any(self.target.iterdir()):
            return None
        if not work.is_prepared(self.target):
            raise InputError(
                f"the output folder {self.target} is not empty and holds no prepared set; choose another --output."
            )
        card = cards.load(self.target)
        others = recipes.differences(card["recipe"], self.recipe)
        if others and not self.force:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise InputError(
                f"{self.target} holds a set by another recipe ({others[0]}{more}); choose another --output, or replace it with --force."
            )
        damaged = work.damaged(self.target, card["files"])
        if not others and damaged is None:
            return self._report(card, reused=True)
        work.check_ours(self.target, card["files"])
        if not others:
            self.notices.append(f"{self.target / str(damaged)} is not as it was written; the set is made anew")
        return None

    def _resumed(self, folder: Path) -> tuple[ingest.Read, Rows] | None:
        """Return what an interrupted call of this recipe had read and done; None, and an empty folder, where there is none."""
        begun, done = work.kept(folder / READ), work.kept(folder / STEPS)
        if begun is None or begun[0]["key"] != self.key:
            if begun is not None:
                other = recipes.differences(begun[0]["recipe"], self.recipe)
                self.notices.append(
                    f"an interrupted preparation is not continued: {other[0] if other else 'the code'} changed"
                )
            work.empty(folder)
            return None
        read = ingest.Read.restored(folder, *begun)
        self.seconds = begun[0]["seconds"]
        if done is None:
            rows = Rows(read.sequence, folder, read.spared)
        else:
            rows = Rows.restored(read.sequence, folder, read.spared, done[0]["rows"], done[1])
            self.done, self.seconds = done[0]["done"], done[0]["seconds"]
        last = self.done[-1]["name"] if self.done else READ
        self.notices.append(f"an interrupted preparation is continued after the step {last}")
        self._tell("continued", step=last)
        return read, rows

    def _read(self, folder: Path) -> tuple[ingest.Read, Rows]:
        began = time.monotonic()
        split = self.section.get("split")
        stratify = split.get("stratify") if isinstance(split, dict) else None
        fields = dict.fromkeys([*([stratify] if stratify else []), *ingest.CATEGORIES])
        read = ingest.read(self.recipe["data"], folder, self.section[recipes.RESTORE], list(fields))
        self._check_unchanged(read)
        facts, arrays = read.save()
        self.seconds[READ] = round(time.monotonic() - began, 3)
        state = {**facts, "key": self.key, "recipe": self.recipe, "seconds": self.seconds}
        work.keep(folder / READ, state, arrays)
        self._tell(
            "read", files=read.files, records=len(read.places), broken=len(read.broken), seconds=self.seconds[READ]
        )
        return read, Rows(read.sequence, folder, read.spared)

    def _check_unchanged(self, read: ingest.Read) -> None:
        """InputError where a source changed between its hash and its last row: what was read is of no one state."""
        for source, before in zip(self.recipe["sources"], self.stats, strict=True):
            if before != _stat(source["path"]) or (before and before[0] != source["bytes"]):
                raise InputError(f"{source['path']} changed while it was read; call again when nobody writes it.")
        if [file["path"] for file in read.files] != [source["path"] for source in self.recipe["sources"]]:
            raise InputError(
                "the files of the sources changed while they were read; call again when nobody writes them."
            )

    def _steps(self, folder: Path, rows: Rows) -> None:
        """Run the steps that are not done, and keep the state after each."""
        done = {step["name"] for step in self.done}
        for name, module in recipes.all_steps().items():
            options = self.section[name]
            if options is False or name in done:
                continue
            self._tell("begin", step=name, rows=len(rows))
            began = time.monotonic()
            rows.step = name
            facts = module.apply(rows, **recipes.with_seed(module, options, self.recipe["seed"])) or {}
            if not len(rows):
                raise InputError(f"prepare: the step {name} left no row; loosen its options, or switch it off.")
            counts = {label: rows.counts[name, action] for label, action in _COUNTS}
            self.done.append(
                {"name": name, "options": options, "kept": len(rows), **counts, "facts": finite(plain(facts))}
            )
            self.seconds[name] = round(time.monotonic() - began, 3)
            state, arrays = rows.save()
            work.keep(folder / STEPS, {"rows": state, "done": self.done, "seconds": self.seconds}, arrays)
            self._tell("step", **self.done[-1], seconds=self.seconds[name])

    def _write(self, folder: Path, read: ingest.Read, rows: Rows) -> dict[str, Any]:
        """Write the whole set into the work folder's `output`; return its card."""
        began = time.monotonic()
        place = folder / "output"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        measures = cards.Measures(rows, list(read.values))
        split = self.section.get("split")
        folds = (split.get("folds") or 0) if isinstance(split, dict) else 0
        written = output.write(rows, place, read.source if self.by_source else None, folds, measures.seen)
        lineage.write(rows, read, written, place / lineage.FILE)
        output.write_text(place / "recipe.yaml", output.as_yaml(self.recipe))
        card = cards.make(self.recipe, read, rows, self.done, written, measures)
        self.seconds["write"] = round(time.monotonic() - began, 3)
        made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": self.seconds}
        card |= {"made": made}
        output.write_text(place / "card.json", output.as_json(card))
        output.write_text(place / "card.html", card_html.render(card, str(self.target)))
        self._tell("written", files=written.files, seconds=self.seconds["write"])
        return card

    def _report(self, card: dict[str, Any], reused: bool) -> Report:
        seconds = card["made"]["seconds"]
        steps = [
            {k: v for k, v in step.items() if k not in ("facts", "options", "reasons")}
            | {"summary": step["facts"].get("summary"), "seconds": seconds.get(step["name"])}
            for step in card["steps"]
        ]
        return {
            "output": str(self.target),
            "rows": card["rows"],
            "steps": steps,
            "files": card["files"],
            "splits": card["splits"],
            "sha256": card["sha256"],
            "seconds": round(sum(seconds.values()), 3),
            "reused": reused,
            "notices": [*card["notices"], *dict.fromkeys(self.notices)],
        }

    def _tell(self, event: str, **fields: Any) -> None:
        for listener in self.listeners:
            listener({"event": event, **fields})

    @contextlib.contextmanager
    def _one_sentence(self, folder: Path) -> Iterator[None]:
        """Make one sentence of what the system says of the output; what is done stays, and the same call goes on."""
        try:
            yield
        except OSError as error:
            where = error.filename or folder
            if disk.is_full(error):
                said = f"the disk is full ({disk.free(folder):,} bytes are free); free space and call again: it goes on from where it was"
            else:
                said = (
                    f"{(error.strerror or str(error)).lower()}; mend that and call again: it goes on from where it was"
                )
            raise InputError(f"{where} cannot be written: {said}.") from error
        except InputError:
            if not (folder / READ).is_file():  # nothing in it to go on with
                work.discard(folder)
            raise


def _stat(path: str) -> tuple[int, int] | None:
    """Return a file's (bytes, time of its last change), None of what is no file."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return found.st_size, found.st_mtime_ns
    return None


_COUNTS = (("dropped", "drop"), ("changed", "change"), ("added", "add"), ("spared", "spare"))
