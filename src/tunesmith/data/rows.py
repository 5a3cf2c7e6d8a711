"""The rows under preparation: steps go over those that are alive, drop some, change some, add some; every fate is kept."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Record
from tunesmith.data.spool import Journal, Records


@dataclass(frozen=True, slots=True)
class Fate:
    """What one step did to one record: `action` is drop, change, add or spare, `reason` a sentence's worth of words."""

    id: int
    step: str
    action: str
    reason: str
    facts: dict[str, Any] = field(default_factory=dict)


class Rows:
    """Records by number (their place in the input; added ones follow), of which some are still alive.

    Iterating gives (id, record) of the living in order. `columns` holds one number per record by name (N,), NaN where a
    step measured none: lengths, scores. `step` is set by the pipeline before each step, and signs what the step does.
    A record in `spared` cannot be dropped: its fate says what spoke against it.

    `records` may be a lazy sequence. What is changed or added, and every fate, goes to files (in `folder`, else temporary
    ones), so memory grows by 17 bytes a record, 4 a column's number and 16 a fate.
    """

    def __init__(self, records: Sequence[Record], folder: Path | None = None, spared: Collection[int] = ()) -> None:
        self.records = records
        self.step = ""
        self.spared = frozenset(spared)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.new = Records(None if folder is None else folder / "changed")
        self.journal = Journal(None if folder is None else folder / "fates")
        self._count = len(records)
        self._alive: npt.NDArray[np.bool_] = np.ones(self._count, dtype=np.bool_)
        self._place: npt.NDArray[np.int64] = np.full(
            self._count, -1, dtype=np.int64
        )  # among the new records; -1: as read
        self._last: npt.NDArray[np.int64] = np.full(self._count, -1, dtype=np.int64)  # its last entry in the journal
        self._columns: dict[str, npt.NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return int(self.alive.sum())

    @property
    def alive(self) -> npt.NDArray[np.bool_]:
        """Which records are alive, (N,). After `add` it is another array."""
        return self._alive[: self._count]

    @property
    def columns(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """The columns by name, each (N,). After `add` they are other arrays."""
        return {name: values[: self._count] for name, values in self._columns.items()}

    @property
    def is_new(self) -> npt.NDArray[np.bool_]:
        """Which records are not as they were read, (N,): changed, or added."""
        return self._place[: self._count] >= 0

    @property
    def fates(self) -> "Fates":
        """Every fate in the order of events, read from the journal."""
        return Fates(self.journal)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        for start in range(0, self._count, 65_536):  # ids of two million rows as a list are memory too
            for offset in np.flatnonzero(self._alive[start : min(start + 65_536, self._count)]).tolist():
                if self._alive[start + offset]:  # a step may drop while it goes over the rows
                    yield start + offset, self[start + offset]

    def __getitem__(self, id_: int) -> Record:
        if not 0 <= id_ < self._count:
            raise IndexError(f"there is no record {id_}")
        place = int(self._place[id_])
        return self.new.get(place) if place >= 0 else self.records[id_]

    def drop(self, id_: int, reason: str, **facts: Any) -> None:
        """Take a record out. Facts are numbers and short texts for the card: of=12 (another's id), similarity=0.93.

        A record that is out already stays so, for the reason that was given first.
        """
        if not self._alive[id_]:
            return
        if id_ in self.spared:
            self._note(id_, "spare", reason, facts)
            return
        self._alive[id_] = False
        self._note(id_, "drop", reason, facts)

    def change(self, id_: int, record: Record, reason: str, **facts: Any) -> None:
        """Put another record in a record's place."""
        self._place[id_] = self.new.put(record)
        self._note(id_, "change", reason, facts)

    def add(self, record: Record, reason: str, **facts: Any) -> int:
        """Append a record made by a step (facts: from_=[ids it was made from], model, ...); return its id."""
        id_ = self._count
        self._grow(id_ + 1)
        self._count += 1
        self._alive[id_] = True
        self._place[id_] = self.new.put(record)
        self._note(id_, "add", reason, facts)
        return id_

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """Return the column of that name (N,), made of NaN where it is new, to write into by id."""
        if name not in self._columns:
            self._columns[name] = np.full(len(self._alive), np.nan, dtype=np.float32)
        return self._columns[name][: self._count]

    def history(self, id_: int) -> list[Fate]:
        """Return what happened to a record, in order."""
        return [Fate(**entry) for entry in self.journal.chain(int(self._last[id_]))]

    def _note(self, id_: int, action: str, reason: str, facts: dict[str, Any]) -> None:
        self.counts[self.step, action] += 1
        entry = {"id": int(id_), "step": self.step, "action": action, "reason": reason, "facts": facts}
        self._last[id_] = self.journal.append(entry, int(self._last[id_]))

    def _grow(self, count: int) -> None:
        """Make room for `count` records, a half more than there was, so that adding one costs the same however many there are."""
        if count <= len(self._alive):
            return
        more = max(count, len(self._alive) * 3 // 2 + 16) - len(self._alive)
        self._alive = np.append(self._alive, np.zeros(more, dtype=np.bool_))
        self._place = np.append(self._place, np.full(more, -1))
        self._last = np.append(self._last, np.full(more, -1))
        empty = np.full(more, np.nan, dtype=np.float32)
        self._columns = {name: np.append(values, empty) for name, values in self._columns.items()}

    def save(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Wait until the files are on disk; return (facts, arrays) from which `restored` makes the same rows."""
        self.new.spool.sync()
        self.journal.spool.sync()
        n = self._count
        facts = {
            "count": n,
            "new": self.new.spool.size,
            "fates": self.journal.spool.size,
            "counts": [[step, action, count] for (step, action), count in sorted(self.counts.items())],
            "columns": list(self._columns),
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "alive": np.packbits(self._alive[:n]),
            "place": self._place[:n],
            "last": self._last[:n],
            "places": np.array(self.journal.places, dtype=np.int64),
            "before": np.array(self.journal.before, dtype=np.int64),
        }
        return facts, arrays | {f"column {i}": v[:n] for i, v in enumerate(self._columns.values())}

    @classmethod
    def restored(
        cls,
        records: Sequence[Record],
        folder: Path,
        spared: Collection[int],
        facts: Mapping[str, Any],
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> "Rows":
        """Return the rows as `save` left them; what was written to the files after it is cut off."""
        rows = cls([], None, spared)
        rows.records, rows._count = records, facts["count"]
        rows.new, rows.journal = Records(folder / "changed", facts["new"]), Journal(folder / "fates", facts["fates"])
        rows.journal.places.frombytes(arrays["places"].tobytes())
        rows.journal.before.frombytes(arrays["before"].tobytes())
        rows._alive = np.unpackbits(arrays["alive"], count=rows._count).astype(np.bool_)
        rows._place, rows._last = arrays["place"].copy(), arrays["last"].copy()
        rows._columns = {name: arrays[f"column {i}"].copy() for i, name in enumerate(facts["columns"])}
        rows.counts = Counter({(step, action): count for step, action, count in facts["counts"]})
        return rows


class Fates(Sequence[Fate]):
    """The journal as a sequence of fates."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __len__(self) -> int:
        return len(self._journal)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Fate(**self._journal[range(len(self))[index]])
