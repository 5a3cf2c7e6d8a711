"""`tunesmith data why`: an input row's fate in plain sentences, and `--restore`, which brings a dropped one back."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data import card as cards
from tunesmith.data import detect, files, lineage, prepare
from tunesmith.data import recipe as recipes
from tunesmith.data.formats._common import RowError
from tunesmith.data.lineage import Line
from tunesmith.data.records import Origin, Record
from tunesmith.data.sources import Source, parse, places
from tunesmith.errors import InputError, did_you_mean

Answer = dict[str, Any]
_MOST = 2**63 - 1  # the lineage's numbers have 64 bits


def why(place: str | Path, row: str) -> Answer:
    """Return {"file", "row", "fate", "says", "records", "source", "notices"} of an input row: what became of it, and why.

    place: a prepared set's folder or its card.json. row: a number from 1, FILE:ROW where there are several sources, or a line
    of the set itself (train.jsonl:12). records: its lines of the lineage, with "text", what the set says there. source: what
    the row says in its file, where that is still the same. Both are masked where the step personal_data ran.
    """
    folder = _folder(place)
    card = cards.load(folder)
    lines = _found(folder, card, row)
    lines += _made_of(folder, lines)
    own = [line for line in lines if _maker(line) is None] or lines
    file, number = lines[0]["file"], lines[0]["row"]
    mask = card["recipe"]["prepare"].get("personal_data", False) is not False
    source, notices = _source(card, file, number, mask)
    for line in lines:
        line["text"] = _written(folder, card, line, mask)
    fate = "kept" if any(line["fate"] == "kept" for line in own) else "dropped"
    says = [sentence for line in lines for sentence in sentences(line, len(own) > 1)]
    return {
        "file": file,
        "row": number,
        "fate": fate,
        "says": says,
        "records": lines,
        "source": source,
        "notices": notices,
    }


def restore(place: str | Path, row: str, listeners: Sequence[prepare.Listener] = ()) -> Answer:
    """Bring a dropped row back: the set is made again into its folder with the row in its recipe's `restore`.

    Returns what `why` says then, and "restored" (False where the row had been kept all along). InputError where the row
    cannot be brought back: it is broken, or a step made it.
    """
    folder = _folder(place)
    card = cards.load(folder)
    before = why(folder, row)
    dropped = [line for line in before["records"] if line["fate"] == "dropped"]
    read = [line for line in dropped if _maker(line) is None]
    if not dropped or (not read and any(_maker(line) is None for line in before["records"])):
        return before | {"restored": False}
    name = f"{before['file']}:{before['row']}"
    if any("source" in file for file in card["files"]):
        raise InputError(
            f'{folder} is what a run keeps for itself; add "{name}" to prepare.restore in its run file instead.'
        )
    if not read:
        raise InputError(f"{row} cannot be brought back: the step {_maker(dropped[0])} made it; change that step.")
    if any(line["id"] is None for line in read):
        reason = read[0]["reason"].rstrip(".")
        raise InputError(f"{name} cannot be brought back: {reason}; mend the row in its file instead.")
    recipe = card["recipe"]
    section = recipe["prepare"]
    section = section | {recipes.RESTORE: [*section.get(recipes.RESTORE, []), name]}
    report = prepare.rebuild(recipe | {"prepare": section}, folder, listeners, force=True)
    after = why(folder, name)
    return after | {"restored": True, "notices": report["notices"] + after["notices"]}


def _maker(line: Line) -> str | None:
    """Return the step that made a record, None of one that was read."""
    events = line["events"]
    return events[0]["step"] if events and events[0]["action"] == "add" else None


def sentences(line: Line, several: bool) -> list[str]:
    """Return in plain words what became of a record, one sentence for each thing that happened to it."""
    events = line["events"]
    name = f"{line['file']}, row {line['row']}"
    if _maker(line) is not None:
        of = ", ".join(events[0]["facts"].get("rows", [])) or "nothing"
        name = f"record {line['id']}, made by {_maker(line)} from {of},"
    elif several:
        name += f", part {line['part'] + 1} ({line['kind']}),"
    said = []
    if line["fate"] == "kept":
        said.append(f"{name} is kept: {line['output']}, line {line['line']}.")
    else:
        said.append(f"{name} is dropped by {line['step']}: {line['reason'].rstrip('.')}{_near(events[-1])}.")
    said += [f"{e['step']} changed it: {e['reason'].rstrip('.')}." for e in events if e["action"] == "change"]
    said += [
        f"{e['step']} would drop it: {e['reason'].rstrip('.')}{_near(e)}; but it was brought back."
        for e in events
        if e["action"] == "spare"
    ]
    if line["made"]:
        count = len(line["made"])
        said.append(
            f"{count:,} row{'s were' if count > 1 else ' was'} made from it: record{'s' * (count > 1)} {_listed(line['made'])}."
        )
    return said


def _near(event: dict[str, Any]) -> str:
    """Return in brackets the row that spoke against this one, where the reason has not named it, and how alike they are."""
    facts = event["facts"]
    of = facts["rows"][0] if facts.get("rows") else ""
    named = of and of.replace(":", ", row ") in event["reason"].replace(":", ", row ")
    said = [f"see {of}"] if of and not named else []
    said += [f"similarity {facts['similarity']:.3g}"] if isinstance(facts.get("similarity"), float) else []
    return f" ({', '.join(said)})" if said else ""


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (" …" if len(ids) > 5 else "")


def _folder(place: str | Path) -> Path:
    path = Path(place)
    return path.parent if path.name in ("card.json", "card.html", "recipe.yaml") else path


def _found(folder: Path, card: dict[str, Any], row: str) -> list[Line]:
    """Return the lineage's lines of a ROW as the command line gives it; InputError where there are none."""
    file, _, number = row.rpartition(":")
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f'"{row}" is no row; give its number from 1, or FILE:ROW.')
    at = min(int(number), _MOST)
    paths = list(dict.fromkeys(source["path"] for source in card["sources"]))
    if not file:
        if len(paths) > 1:
            raise InputError(f"the set has {len(paths)} source files; say which: {Path(paths[0]).name}:{number}.")
        file = paths[0]
    inputs = [p for p in paths if p == file] or [p for p in paths if f"/{p}".endswith(f"/{file}")]
    own = Path(file).resolve()  # the set's files may be named as `prepare` prints them: prepared/train.jsonl
    outputs = [f["path"] for f in card["files"] if f["path"] == file or (folder / f["path"]).resolve() == own]
    if len(inputs) > 1:
        raise InputError(f'"{file}" may be {" or ".join(inputs)}; give more of the path.')
    if not inputs and not outputs:
        hint = did_you_mean(file, [*paths, *(Path(p).name for p in paths)])
        raise InputError(f'"{file}" is no source and no file of {folder}.{hint}')
    if inputs:
        lines = lineage.find(folder, [("file", "==", inputs[0]), ("row", "==", at)])
    else:
        lines = lineage.find(folder, [("output", "==", outputs[0]), ("line", "==", at)])
    if not lines:
        has = next((s["rows"] for s in card["sources"] if s["path"] in inputs), None)
        has = has if has is not None else next(f["rows"] for f in card["files"] if f["path"] in outputs)
        raise InputError(f"{(inputs or outputs)[0]} has no row {number}; {has:,} rows were read from it.")
    return lines


def _made_of(folder: Path, lines: list[Line]) -> list[Line]:
    """Return the rows that were made from these and are not among them, so that all that became of a row is told."""
    there = {line["id"] for line in lines}
    ids = [id_ for line in lines for id_ in line["made"][:20] if id_ not in there]
    return [line for id_ in ids for line in lineage.find(folder, [("id", "==", id_)])]


def _source(card: dict[str, Any], file: str, number: int, mask: bool) -> tuple[str | None, list[str]]:
    """Return what the row says in its file now, None (and why) where the file is not what it was or the row says nothing."""
    info = next((s for s in card["sources"] if s["path"] == file), None)
    try:
        source, place = _place(card["recipe"], file)
        if info is None or recipes.hashed(place)["sha256"] != info["sha256"]:
            return None, [f"{file} has changed since; what the row said is not known any more"]
        records = _records(place, source, info["format"], number)
    except RowError:
        return None, []
    except InputError as error:
        return None, [
            f"{file} cannot be shown ({str(error).rstrip('.')}); its path is as it was given when the set was made"
        ]
    return _shown(records, mask), []


def _place(recipe: recipes.Recipe, file: str) -> tuple[Source, files.Place]:
    for source in parse(recipe["data"]):
        for place in places(source)[0]:
            if str(place) == file:
                return source, place
    raise InputError(f"there is no {file} any more.")


def _records(place: files.Place, source: Source, name: str, number: int) -> list[Record]:
    row = None if hasattr(detect.all_formats()[name], "join") else _line(place, number)
    items = files.stream(place) if row is None else iter([(number, row)])
    for item in detect.rows(items, name, str(place), source.columns, source.labels):
        if not isinstance(item, RowError) and item[0] == number:
            return detect.convert(item[1], Origin(str(place), number), name, source.format is not None)
    return []


def _line(place: files.Place, number: int) -> dict[str, Any] | None:
    """Return a row of a plain JSONL file without parsing those before it, None where it is none."""
    if place.path is None or place.packed or place.ending not in (".jsonl", ".ndjson"):
        return None
    with place.path.open("rb") as f:
        line = next(islice(f, number - 1, None), b"")
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _written(folder: Path, card: dict[str, Any], line: Line, mask: bool) -> str | None:
    """Return what a kept record says in the set's own file; None of a dropped one."""
    if line["output"] not in [file["path"] for file in card["files"]]:
        return None
    row = _line(files.Place(folder / line["output"]), line["line"])
    found = None if row is None else detect.best_match(row)
    if row is None or found is None:
        raise InputError(f"{folder / line['output']} has no such line {line['line']} any more; prepare the set again.")
    return _shown(detect.convert(row, Origin(line["output"], line["line"]), found[0]), mask)


def _shown(records: Sequence[Record], mask: bool) -> str | None:
    return "\n".join(cards.shown(record) for record in (cards.masked(records) if mask else records)) or None


__all__ = ["restore", "sentences", "why"]
