"""The rows of a run, each under its set's own objective: checked, rendered, how hard they are, and an epoch's mix told."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import registry
from tunesmith.config import RunConfig
from tunesmith.data import mismatched, tally, verdicts, work
from tunesmith.data.cache import rendered
from tunesmith.data.formats._common import RowError, json_type
from tunesmith.data.lazy import Chosen, Origins
from tunesmith.data.load_file import FileInfo
from tunesmith.data.mixing import Indices, Mixing, Numbers
from tunesmith.data.records import KINDS, Examples, Record
from tunesmith.data.render import Score, check_answers
from tunesmith.data.sources import Loaded, check_objective
from tunesmith.errors import InputError
from tunesmith.training import answers, needs, reward_rows

CARD = "data-card"  # its files in the run's folder, without their ending
KEPT = ("weight", "cap", "objective", "general")  # keys of an entry that hold for its prepared rows too
Scored = list[tuple[Score, Indices]]
"""(what is scored, the places of the records for which that is)."""


@dataclass(frozen=True)
class Entries:
    """What a run reads: entries as in `data` to train on, and to validate on (none: the run holds rows out itself).

    paths: what the user calls each of the first; card: the folder of the data card, where the rows were prepared; called: what
    the user calls those paths that are not his.
    """

    train: list[dict[str, Any]]
    paths: list[str]
    validation: list[dict[str, Any]] = field(default_factory=list)
    card: Path | None = None
    called: dict[str, str] = field(default_factory=dict)


def entries(config: RunConfig, say: Callable[[str], None] = lambda _: None) -> tuple[Entries, list[str]]:
    """Return what to read, prepared first where the run file has a section `prepare` (`say` hears of each step); and notices."""
    section = _preparation(config)
    if section is None:
        paths = [str(entry["path"]) for entry in config.data]
        held = [work.own_validation(entry) for entry in config.data] if config.validation == {} else []
        own = [entry for entry in held if entry is not None]  # prepared sets hold rows out themselves
        return Entries(config.data, paths, own if len(own) == len(config.data) else []), []
    from tunesmith.data import card, prepare

    def heard(event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            say(f"preparing the data: {event['step']} over {event['rows']:,} records")

    folder = prepare.prepared(config.data, section, config.train.seed, (heard,))
    train, paths, validation, called = [], [], [], {}
    for number, entry in enumerate(config.data, 1):
        place = folder / f"source-{number}"
        made = {"path": str(place), **{k: v for k, v in entry.items() if k in KEPT}}
        called[str(place)] = str(entry["path"])
        if any(place.rglob("train.jsonl")):
            train.append(made)
            paths.append(str(entry["path"]))
        if any(place.rglob("validation.jsonl")):
            validation.append({**made, "split": "validation"})
    return Entries(train, paths, validation, folder, called), [_prepared_sentence(card.load(folder))]


def _preparation(config: RunConfig) -> dict[str, Any] | None:
    """Return `prepare` as a run needs it: a split that it says nothing of is the one `validation` asks for, without a test set."""
    if config.prepare is None or config.prepare.get("split") not in (None, True):
        return config.prepare
    split: dict[str, Any] | bool = {"test": 0}
    if config.validation is False or "path" in config.validation:
        split = False
    elif "fraction" in config.validation:
        split = {"validation": config.validation["fraction"], "test": 0}
    return {**config.prepare, "split": split}


def _prepared_sentence(found: dict[str, Any]) -> str:
    rows = found["rows"]
    did = [f"{s['name']} {', '.join(d)}" for s in found["steps"] if (d := _done(s))]
    broken = f", {rows['broken']:,} rows could not be read" if rows["broken"] else ""
    return (
        f"prepared: {rows['kept']:,} of {rows['records']:,} records kept{broken}"
        f"{' (' + '; '.join(did) + ')' if did else ''}; {CARD}.json tells every row's fate"
    )


def _done(step: dict[str, Any]) -> list[str]:
    return [f"{what} {step[what]:,}" for what in ("dropped", "changed", "added") if step.get(what)]


class Tasks:
    """Which objective each set's rows are for: its own, or the run's. names (sets,); modules by name.

    called: what the user calls a path, where it is another (of a set in the cache, once it is prepared).
    """

    def __init__(self, entries: Sequence[dict[str, Any]], objective: str, called: Mapping[str, str]) -> None:
        self.entries, self.objective, self.called = entries, objective, called
        self.paths = [called.get(str(entry["path"]), str(entry["path"])) for entry in entries]
        self.names = [str(entry.get("objective") or objective) for entry in entries]
        self.modules: dict[str, Any] = {n: registry.load("training.objectives", n) for n in (objective, *self.names)}

    @property
    def own_reads(self) -> Sequence[type]:
        """The kinds of record that the run's objective reads: those of sets without one of their own."""
        reads: Sequence[type] = self.modules[self.objective].reads
        return reads

    @property
    def reads(self) -> list[type]:
        """The kinds of record that any of the objectives reads."""
        names = dict.fromkeys([self.objective, *self.names])
        return list(dict.fromkeys(kind for name in names for kind in self.modules[name].reads))

    def readable(self, loaded: Loaded) -> tuple[Loaded, list[str]]:
        """Return the rows without those files of prepared sets that their objective does not read, and notices of these.

        A prepared set has a file for each kind that its rows made (a log of chats makes three). Only a set of which nothing could
        be read stays whole, for `check_kinds` to name.
        """
        out = np.array([self._left_out(file) for file in loaded.files], dtype=np.bool_)
        of = np.array([file.source for file in loaded.files], dtype=np.int64)
        out &= np.isin(of, of[~out])
        counts: dict[int, list[str]] = {}
        for file in (file for file, left in zip(loaded.files, out, strict=True) if left):
            counts.setdefault(file.source, []).extend(f"{count:,} {kind}" for kind, count in file.kinds.items())
        said = [
            f"{self.paths[index]}: left out, because the objective {self.names[index]} does not read it: {', '.join(counted)}"
            for index, counted in counts.items()
        ]
        kept = np.flatnonzero(~np.repeat(out, [file.records for file in loaded.files]))
        files = [file for file, left in zip(loaded.files, out, strict=True) if not left]
        if not counts:
            return loaded, []
        return replace(loaded, records=Chosen(loaded.records, kept), source=loaded.source[kept], files=files), said

    def _left_out(self, file: FileInfo) -> bool:
        reads = {KINDS[kind] for kind in self.modules[self.names[file.source]].reads}
        return reads.isdisjoint(file.kinds) and work.of_prepared(Path(str(self.entries[file.source]["path"])))

    def check_kinds(self, loaded: Loaded) -> None:
        """InputError where a set holds records of a kind its objective cannot read."""
        for index, name in enumerate(self.names):
            files = [file for file in loaded.files if file.source == index]
            if str(self.entries[index]["path"]) in self.called:
                files = [replace(file, path=self.paths[index]) for file in files]
            own = replace(loaded, files=files)
            check_objective(own, name, self.modules[name].reads)

    def check_answers(self, records: Iterable[Record], section: Mapping[str, Any]) -> None:
        """InputError where the training `records` cannot teach what the run's `section` objective asks of verdicts, scores or ratings."""
        module = self.modules[self.objective]
        needs.check(records, module, section)
        if getattr(module, "compares", None) == "verdicts":
            verdicts.check(records, self.objective, getattr(module, "mismatched", False))

    def scored(self, source: Indices) -> Scored:
        """Return what is scored of rows of the sets `source`, (rows,)."""
        scores = [self.modules[name].scores for name in self.names]
        of_row = np.array([scores.index(s) for s in scores], dtype=np.int64)[source]
        return [(scores[first], np.flatnonzero(of_row == first)) for first in np.unique(of_row).tolist()]

    def check_validation(self, loaded: Loaded) -> Scored:
        """Return what is scored of validation rows of their own: by the run's objective, or else the first of a set that reads
        them. InputError where none reads a row.
        """
        try:
            check_objective(loaded, self.objective, self.reads)
        except InputError as e:
            raise InputError(f"validation: {e}") from e
        modules = [self.modules[name] for name in dict.fromkeys([self.objective, *self.names])]
        scores = [module.scores for module in modules]
        which = [scores.index(next(m.scores for m in modules if isinstance(r, m.reads))) for r in loaded.records]
        return [(scores[first], np.flatnonzero(np.array(which) == first)) for first in sorted(set(which))]


def check_tasks(records: Sequence[Record], scored: Scored) -> None:
    """InputError where none of the rows whose answers are scored has one to train on."""
    for score, places in scored:
        check_answers(Chosen(records, places), score)


def render_tasks(
    records: Sequence[Record], scored: Scored, tokenizer: Any, max_length: int | None
) -> tuple[Examples, list[str], list[str]]:
    """Return what data.cache.rendered(...) returns, for records of which each is scored as `scored` says of its place."""
    if len(scored) == 1:
        return rendered(records, tokenizer, max_length, scored[0][0])
    parts = [(places, *rendered(Chosen(records, places), tokenizer, max_length, score)) for score, places in scored]
    made = [examples for _, examples, _, _ in parts]
    ends = np.cumsum([0, *(len(m.ids) for m in made)])
    joined = Examples(
        ids=np.concatenate([m.ids for m in made]),
        scored=np.concatenate([m.scored for m in made]),
        offsets=np.concatenate([[0], *(m.offsets[1:] + end for m, end in zip(made, ends[:-1], strict=True))]),
        record=np.concatenate([places[m.record] for places, m, _, _ in parts]),
        origins=Origins(records),
    )
    return joined, [n for _, _, notices, _ in parts for n in notices], [n for *_, said in parts for n in said]


def render_rows(
    records: Sequence[Record],
    scored: Scored,
    tokenizer: Any,
    max_length: int | None,
    objective: Any,
    section: Mapping[str, Any],
) -> tuple[Examples, list[str], list[str]]:
    """Return what `render_tasks` returns for the rows of a run's objective, grouped by prompt where that compares answers.

    section: the run file's, of which a reward model's names its attributes.
    """
    if not hasattr(objective, "compares"):
        return render_tasks(records, scored, tokenizer, max_length)
    if getattr(objective, "model", None) == "reward":
        examples, notices, said = rendered(records, tokenizer, max_length, objective.scores)
        told = [n for n in notices if tally.NOTHING not in n]  # what is left out whole is told better
        examples, left_out = reward_rows.rows(examples, records, objective, section)
        return examples, told, said + left_out
    other = getattr(objective, "mismatched", False)
    asked = mismatched.Mismatched(records) if other else records
    examples, notices, said = rendered(asked, tokenizer, max_length, "answers")
    told = [n for n in notices if tally.NOTHING not in n]
    examples, left_out = answers.grouped(examples, records, mismatched.values if other else None)
    return examples, told, said + left_out


def read_scores(records: Sequence[Record], mixing: Mixing) -> Numbers | None:
    """Return each record's number to go by from easy to hard, (records,), None where no field is asked; RowError where it has none."""
    if mixing.score_field is None:
        return None
    sign = -1.0 if mixing.easiest == "highest" else 1.0
    return sign * np.array([_score(record, mixing.score_field) for record in records])


def _score(record: Record, name: str) -> float:
    value: Any = record.extra.get(name)
    if name not in record.extra:
        message = f'field "{name}", which mixing.score_field names, is missing (or it is one the row is made of).'
        raise RowError(record.origin, name, "missing_field", message)
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        shown = "no finite number" if isinstance(value, float) else json_type(value)
        message = f'field "{name}", which mixing.score_field names, is {shown}, expected a number.'
        raise RowError(record.origin, name, "wrong_type", message)
    return number


def difficulty(examples: Examples, mixing: Mixing, scores: Numbers | None) -> Numbers | None:
    """Return each row's place from easy to hard as a number, (rows,), None without a curriculum."""
    if mixing.curriculum is None:
        return None
    return examples.row_lengths.astype(np.float64) if scores is None else scores[examples.row_record]


def rows_by_set(examples: Examples, source: Indices, sets: int) -> list[Indices]:
    """Return the numbers of each set's rows in the order of its records; source (records,) is the set of each record."""
    by_record = np.argsort(examples.row_record, kind="stable")
    of = source[examples.row_record[by_record]]
    return [by_record[of == index] for index in range(sets)]


def tell_mix(
    tasks: Tasks, paths: Sequence[str], all_: Sequence[Indices], drawn: Sequence[Indices], examples: Examples
) -> list[dict[str, Any]]:
    """Return what each set gives to an epoch: {"path", "objective", "general", "available", "examples", "rows", "tokens",
    "scored_tokens", "share"}.

    paths: what the user calls the sets; all_ and drawn: the numbers of a set's examples, and of those that the epoch has. available
    counts the first, examples the second, rows those records they are made of; share is that of the epoch's tokens.
    """
    lengths, scored = examples.row_lengths, examples.row_scored
    total = max(sum(int(lengths[d].sum()) for d in drawn), 1)
    mix = []
    for entry, objective, path, own, taken in zip(tasks.entries, tasks.names, paths, all_, drawn, strict=True):
        tokens = int(lengths[taken].sum())
        mix.append(
            {
                "path": path,
                "objective": objective,
                "general": bool(entry.get("general")),
                "available": len(own),
                "examples": len(taken),
                "rows": len(np.unique(examples.row_record[taken])),
                "tokens": tokens,
                "scored_tokens": int(scored[taken].sum()),
                "share": round(tokens / total, 4),
            }
        )
    return mix


def mix_sentence(mix: Sequence[dict[str, Any]], objective: str) -> str:
    """Say what `tell_mix` found; `objective` is the run's, which is not said of each set."""
    said = []
    for one in mix:
        n, available = one["examples"], one["available"]
        of = f" (of {available:,})" if n < available else f" (each {n / max(available, 1):.3g} times)"
        what = f" for {one['objective']}" * (one["objective"] != objective) + ", general data" * one["general"]
        said.append(
            f"{one['path']}{what}: {n:,} examples{of if n != available else ''}, {one['tokens']:,} tokens ({one['share']:.1%})"
        )
    return f"an epoch's mix: {'; '.join(said)}"
