"""What became of every row: lineage.parquet, a line per record and per broken row, and the answers to `tunesmith data why`."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.card import masked_reason, masked_text
from tunesmith.data.ingest import Read
from tunesmith.data.output import Written
from tunesmith.data.records import KINDS, Origin
from tunesmith.data.rows import Fate, Rows
from tunesmith.errors import InputError
from tunesmith.training import disk

FILE = "lineage.parquet"
GROUP = 8192  # rows read to find one
Line = dict[str, Any]
_FIELDS = {
    "id": "int64",  # the record's number; null of a row that gave none
    "file": "string",
    "row": "int64",
    "part": "int64",
    "kind": "string",
    "fate": "string",  # kept, dropped
    "step": "string",  # that dropped it ("read": it is broken), or made it
    "reason": "string",
    "output": "string",  # the file it stands in, and its line there
    "line": "int64",
    "events": "string",  # JSON: [{"step", "action", "reason", "facts"}]
    "made": "string",  # JSON: ids of the rows made from it
}


def write(rows: Rows, read: Read, written: Written, path: Path) -> None:
    """Write the lineage of every record, in the order of the input, the added ones last; flat in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _FIELDS.items()])
    waiting: list[Line] = []
    place = path.absolute()  # a relative one with a colon in it pyarrow takes for an address
    with pq.ParquetWriter(place, schema, compression="zstd") as writer:
        for line in _lines(rows, read, written):
            waiting.append(line)
            if len(waiting) == GROUP:
                disk.at(f"write {path.name}")
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    disk.sync(path)


def _lines(rows: Rows, read: Read, written: Written) -> Iterator[Line]:
    made = _Made(rows, len(read.places))
    broken = iter(read.broken)
    next_broken = next(broken, None)
    for id_ in range(len(rows.alive)):
        while next_broken is not None and next_broken["before"] <= id_:
            yield _broken(next_broken)
            next_broken = next(broken, None)
        yield _line(id_, rows, written, made.of(id_))
    while next_broken is not None:
        yield _broken(next_broken)
        next_broken = next(broken, None)


def _broken(entry: dict[str, Any]) -> Line:
    reason = masked_reason(entry["reason"])
    event = {"step": "read", "action": "drop", "reason": reason, "facts": {"kind": entry["kind"]}}
    line: Line = dict.fromkeys(_FIELDS)
    line |= {"file": entry["file"], "row": entry["row"], "part": 0, "fate": "dropped", "step": "read"}
    return line | {"reason": reason, "events": json.dumps([event], ensure_ascii=False), "made": "[]"}


def _line(id_: int, rows: Rows, written: Written, made: list[int]) -> Line:
    record = rows[id_]
    origin: Origin = record.origin
    history = rows.history(id_)
    alive = bool(rows.alive[id_])
    number = int(written.file[id_])
    last = next((f for f in reversed(history) if f.action in ("drop", "add")), None)
    return {
        "id": id_,
        "file": origin.file,
        "row": origin.row,
        "part": origin.part,
        "kind": KINDS[type(record)],
        "fate": "kept" if alive else "dropped",
        "step": None if last is None else last.step,
        "reason": None if last is None else masked_reason(last.reason),
        "output": written.files[number]["path"] if number >= 0 else None,
        "line": int(written.line[id_]) if number >= 0 else None,
        "events": json.dumps([_event(f, rows) for f in history], ensure_ascii=False),
        "made": json.dumps(made),
    }


def _event(fate: Fate, rows: Rows) -> dict[str, Any]:
    """Return a fate with the rows it names by id named by file and row too."""
    facts: dict[str, Any] = {k: masked_text(v) if isinstance(v, str) else v for k, v in fate.facts.items()}
    named = [facts["of"]] if isinstance(facts.get("of"), int) else []
    if isinstance(facts.get("from_"), list):
        facts["from"] = facts.pop("from_")
        named += facts["from"]
    origins = (rows[i].origin for i in named)
    facts |= {"rows": [f"{o.file}:{o.row}" for o in origins]} if named else {}
    return {"step": fate.step, "action": fate.action, "reason": masked_reason(fate.reason), "facts": facts}


class _Made:
    """Which rows were made from which: two arrays, the first sorted."""

    def __init__(self, rows: Rows, read: int) -> None:
        parents, made = array("q"), array("q")
        for id_ in range(read, len(rows.alive)):
            for parent in rows.history(id_)[0].facts.get("from_") or []:
                parents.append(parent)
                made.append(id_)
        order = np.argsort(np.array(parents, dtype=np.int64), kind="stable")
        self._parents, self._made = np.array(parents, dtype=np.int64)[order], np.array(made, dtype=np.int64)[order]

    def of(self, id_: int) -> list[int]:
        start, stop = np.searchsorted(self._parents, [id_, id_ + 1])
        found: list[int] = self._made[start:stop].tolist()
        return found


def find(folder: Path, filters: list[tuple[str, str, Any]]) -> list[Line]:
    """Return the lines that meet all of the filters, ("row", "==", 12), reading only the parts of the file that can hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        lines: list[Line] = pq.read_table((folder / FILE).absolute(), filters=filters).to_pylist()
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder / FILE} cannot be read ({first}); prepare the set again.") from error
    return [line | {"events": json.loads(line["events"]), "made": json.loads(line["made"])} for line in lines]
