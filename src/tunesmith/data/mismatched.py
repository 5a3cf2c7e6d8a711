"""Each verdict's prompt with an answer to another prompt: what tells KTO how far a policy has drifted, whatever it is asked."""

import json
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from tunesmith.data.kinds import is_empty
from tunesmith.data.records import Preference, Record, Verdict
from tunesmith.data.splits import hashed, prompt_hash

Indices = npt.NDArray[np.int64]
_NONE = np.zeros(0, dtype=np.int64)
_TRIES = 30  # rows that are asked to swap with one whose own answer and mismatched one are equal


class Mismatched(Sequence[Record]):
    """The verdicts `records`, each with an answer of another row (`donors`) behind its own; made when they are asked for."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records, self.numbers = records, donors(records)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Preference: ...
    @overload
    def __getitem__(self, at: slice) -> list[Preference]: ...
    def __getitem__(self, at: int | slice) -> Preference | list[Preference]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        own, donor = self.records[at], self.records[int(self.numbers[at])]
        assert isinstance(own, Verdict)
        assert isinstance(donor, Verdict)
        return Preference(own.prompt, [own.answer, donor.answer], own.origin, None, own.tools, own.extra)


def values(record: Record) -> list[float]:
    """Return what is known of a verdict's two answers there: 1.0 or 0.0 for good or bad, and nothing (NaN) of the other row's."""
    assert isinstance(record, Verdict)
    return [float(record.good), float("nan")]


def donors(records: Sequence[Record]) -> Indices:
    """Return for each of the verdicts `records` the number of the row whose answer stands in for its own, (N,); it reads each once.

    A rotation of the rows, in which those with one prompt stand side by side, by as many as the most common prompt has: no
    row gets an answer to its own prompt, every answer is given once (TRL's rotation by one, where all prompts differ), and
    it depends on the rows alone. An empty answer is given to nobody; its row, which is left out, has itself. Rows that
    would get an answer equal to their own swap with others where they can. Where one prompt has more than half of the rows,
    the others' answers are given several times; where it has all, or there is one row, nothing better is to be had.
    """
    keys = [_keys(record) for record in records]
    if not keys:
        return _NONE
    prompts, answers, said = (np.array(k, dtype=np.int64) for k in zip(*keys, strict=True))
    given, found = np.flatnonzero(said), np.arange(len(keys))
    found[given] = given[_drawn(prompts[given], answers[given])]
    return found


def _drawn(prompts: Indices, answers: Indices) -> Indices:
    """Return `donors` of rows that all have an answer."""
    _, first, group, size = np.unique(prompts, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first[group], kind="stable")
    donor = np.empty(len(prompts), dtype=np.int64)
    donor[order] = np.roll(order, int(size.max(initial=0)))
    wrong = np.flatnonzero(prompts[donor] == prompts)
    others = np.flatnonzero(prompts != prompts[wrong[0]]) if len(wrong) else _NONE
    if len(others):
        donor[wrong] = others[np.arange(len(wrong)) % len(others)]
    _swap(donor, prompts, answers)
    return donor


def _swap(donor: Indices, prompts: Indices, answers: Indices) -> None:
    """Let rows whose donor says what they say themselves change it for another's, where that suits both."""

    def suits(row: int, giver: int) -> bool:
        return bool(prompts[row] != prompts[giver] and answers[row] != answers[giver])

    several = len(np.unique(answers)) > 1
    for i in np.flatnonzero(answers[donor] == answers).tolist() if several else []:
        for j in ((i + k) % len(donor) for k in range(1, min(_TRIES, len(donor)))):
            if suits(i, donor[j]) and suits(j, donor[i]):
                donor[i], donor[j] = donor[j], donor[i]
                break


def _keys(record: Record) -> tuple[int, int, bool]:
    """Return what tells a row's prompt and its answer from others, and whether the answer says anything."""
    assert isinstance(record, Verdict)
    answer = hashed(json.dumps(record.answer, sort_keys=True, default=str))
    return prompt_hash(record), answer, not is_empty(record.answer)
