"""Rows that repeat or contradict another one, in the same file or another, and prompts on both sides of a split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.data.checks.found import Found, Item, excerpt
from tunesmith.data.checks.seen import Ints, Seen
from tunesmith.data.records import Chat, Preference, Text, Verdict

_BATCH = 4096
_SPLITS = {
    "train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "validation",
}  # fmt: skip
_MOST_SHARED = 0.05


def split_of(path: str) -> str | None:
    """Return the split that a file's name tells: train, validation or test; None where it tells none."""
    return _SPLITS.get(Path(path).stem.lower().replace("_", "-").replace(".", "-").split("-")[0])


@dataclass(slots=True)
class _Waiting:
    row: int
    field: str | None
    sample: str
    chat: bool


class Duplicates:
    """Over all files of one inspection: 16 bytes a key, three keys a record."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._same, self._prompts, self._pairs = Seen(), Seen(), Seen()
        self._found: Found | None = None
        self._keys: list[tuple[int, int, int]] = []
        self._rows: list[_Waiting] = []
        self._asked_again: list[tuple[_Waiting, int]] = []
        self._chats = 0
        self._more = 0

    def begin(self, file: str, found: Found) -> None:
        """Begin a file, whose problems go to `found`."""
        self._files.append(file)
        self._found, self._asked_again, self._chats, self._more = found, [], 0, 0

    def see(self, item: Item) -> None:
        """Remember a record; problems are told in batches."""
        record = item.record
        chat = isinstance(record, Chat)
        text = item.text.strip()
        prompt = 0 if isinstance(record, Text) or not item.prompt.strip() else hash(item.prompt)
        if isinstance(record, Verdict):
            keys = (hash((text, record.good)), prompt, hash(text))
        elif isinstance(record, Preference):
            keys = (hash(text), prompt, hash((item.prompt, frozenset(item.answers))))
        else:
            keys = (hash(text), prompt, 0)
        self._keys.append(keys)
        self._rows.append(_Waiting(item.number, None, text[:61], chat))
        self._chats += chat
        if len(self._keys) >= _BATCH:
            self._tell()

    def end(self) -> None:
        """End the file: tell the rest; one prompt with two answers only where that is the exception in the file."""
        self._tell()
        if self._found and self._more + len(self._asked_again) <= _MOST_SHARED * self._chats:
            for waiting, place in self._asked_again:
                message = f"the prompt is the one of {self._where(place)}, with another answer."
                self._found.add("same_prompt", waiting.row, None, message, excerpt(waiting.sample))

    def _tell(self) -> None:
        if not self._keys or self._found is None:
            return
        keys = np.array(self._keys, dtype=np.int64)
        base = (len(self._files) - 1) << 40
        places = base + np.array([w.row for w in self._rows], dtype=np.int64)
        same = self._same.earlier(keys[:, 0], places)
        prompts = self._first(self._prompts, keys[:, 1], places)
        pairs = self._first(self._pairs, keys[:, 2], places)
        for i in np.flatnonzero((same >= 0) | (prompts >= 0) | (pairs >= 0)).tolist():
            self._row(self._rows[i], int(places[i]), int(same[i]), int(prompts[i]), int(pairs[i]))
        self._keys, self._rows = [], []

    def _row(self, waiting: _Waiting, place: int, same: int, prompt: int, pair: int) -> None:
        assert self._found is not None
        sample = excerpt(waiting.sample)
        if prompt >= 0 and self._other_split(prompt):
            message = f"the prompt is also in {self._where(prompt)}, which is of another split."
            self._found.add("leak", waiting.row, waiting.field, message, sample)
        elif same >= 0 and same != place:
            self._found.add(
                "duplicate", waiting.row, None, f"the row says exactly what {self._where(same)} says.", sample
            )
        elif pair >= 0 and pair != place and same < 0:
            self._found.add("conflict", waiting.row, None, f"the row says the opposite of {self._where(pair)}.", sample)
        elif waiting.chat and prompt >= 0 and prompt != place and same < 0:
            if len(self._asked_again) < self._found.most:
                self._asked_again.append((waiting, prompt))
            else:
                self._more += 1

    @staticmethod
    def _first(seen: Seen, keys: Ints, places: Ints) -> Ints:
        """Return where each key was seen first; -1 for new ones, and where there is no key (0)."""
        out = np.full(len(keys), -1, dtype=np.int64)
        has = keys != 0
        if has.any():
            out[has] = seen.earlier(keys[has], places[has])
        return out

    def _where(self, place: int) -> str:
        file, row = place >> 40, place & ((1 << 40) - 1)
        return f"row {row}" if file == len(self._files) - 1 else f"{self._files[file]}, row {row}"

    def _other_split(self, place: int) -> bool:
        mine, theirs = split_of(self._files[-1]), split_of(self._files[place >> 40])
        return mine != theirs and mine is not None and theirs is not None
