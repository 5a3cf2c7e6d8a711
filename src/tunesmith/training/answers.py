"""Answers to prompts as losses compare them: examples grouped by prompt, and in a batch who is compared with whom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.kinds import is_empty
from tunesmith.data.records import Examples, Preference, Record, Verdict
from tunesmith.errors import InputError
from tunesmith.model.layout import moved

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """The answers in a batch, A of them, those of one row (a prompt) side by side, the best first.

    of_target (N,) int64: whose target each is; last (A,) int64: the token that each ends with; group (A,) int64 from 0, ascending: its
    row's place; values (A,) float32: its score or verdict, NaN without. counts (G,) int64: the answers of each row, `most` at most.
    Pairs of a row's answers, P of them: first and second (P,) int64, the better and the other; weight (P,) float32, which adds up to 1
    over a row (Ouyang et al., 2022, eq. 1); margin (P,) float32, how far their scores are apart, 0 without.
    On the host, so that nobody waits for a device: the numbers of the rows (G,), of each answer's (A,) and of each pair's (P,).
    """

    of_target: Tensor
    last: Tensor
    group: Tensor
    values: Tensor
    first: Tensor
    second: Tensor
    weight: Tensor
    margin: Tensor
    counts: Tensor
    most: int
    rows: Indices
    answer_rows: Indices
    pair_rows: Indices

    def to(self, device: torch.device) -> "Answers":
        """Return it on `device`."""
        tensors: dict[str, Any] = {name: moved(t, device) for name, t in self.tensors().items()}
        return replace(self, **tensors)

    def pin_memory(self) -> "Answers":
        """Return it in page-locked host memory."""
        return replace(self, **{name: t.pin_memory() for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Any]:
        """Return its tensors by name."""
        return {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)}


def find(examples: Examples, rows: Indices, last: Indices, of_target: Indices) -> Answers:
    """Return the answers of a batch that holds the examples `rows` (B,), whose last tokens are at `last` (B,); of_target (N,) says
    which of these examples each target belongs to. Examples of one answer, where a template made several, are one.
    """
    assert examples.groups is not None
    assert examples.answer is not None
    assert examples.values is not None
    group = np.searchsorted(examples.groups, rows, side="right") - 1 + examples.rows * copies(rows)
    most = int(examples.answer.max(initial=0)) + 1
    names, of_example = np.unique(group * most + examples.answer[rows], return_inverse=True)
    ends, value = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.float32)
    for place in np.argsort(rows, kind="stable"):  # an answer ends where its last example does
        ends[of_example[place]], value[of_example[place]] = last[place], examples.values[rows[place]]
    numbers, of_answer, counts = np.unique(names // most, return_inverse=True, return_counts=True)
    answer_rows = (numbers % examples.rows)[of_answer]
    first, second, weight, margin = _pairs(of_answer, value)
    return Answers(
        of_target=torch.from_numpy(of_example[of_target]),
        last=torch.from_numpy(ends),
        group=torch.from_numpy(of_answer),
        values=torch.from_numpy(value),
        first=torch.from_numpy(first),
        second=torch.from_numpy(second),
        weight=torch.from_numpy(weight),
        margin=torch.from_numpy(margin),
        counts=torch.from_numpy(counts),
        most=int(counts.max(initial=0)),
        rows=numbers % examples.rows,
        answer_rows=answer_rows,
        pair_rows=answer_rows[first],
    )


def copies(rows: Indices) -> Indices:
    """Return how many times each of `rows` (B,) was there before, (B,): a row that is drawn twice in a step is two."""
    order = np.argsort(rows, kind="stable")
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    found = np.empty_like(rows)
    found[order] = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
    return found


def _pairs(group: Indices, values: npt.NDArray[np.float32]) -> tuple[Any, Any, Any, Any]:
    """Return (first, second, weight, margin) of all pairs within a group, but of those that tie."""
    first, second = np.nonzero((group[:, None] == group[None, :]) & np.tri(len(group), k=-1, dtype=bool).T)
    apart = values[first] - values[second]
    decided = ~(apart == 0)  # what has no score is ranked by its place
    first, second, apart = first[decided], second[decided], apart[decided]
    count = np.bincount(group[first], minlength=int(group.max(initial=0)) + 1)
    weight = (1.0 / count[group[first]]).astype(np.float32) if len(first) else np.zeros(0, np.float32)
    return first, second, weight, np.nan_to_num(apart).astype(np.float32)


def grouped(
    examples: Examples,
    records: Sequence[Record],
    values_of: Callable[[Record], Sequence[float]] | None = None,
    compared: bool = True,
) -> tuple[Examples, list[str]]:
    """Return the examples with a row for each record, and notices of the records that are left out whole.

    These are the ones of which an answer was cut down to nothing, and where answers are `compared` those whose answers all tie, or have
    become the same tokens. values_of: what a record says of each answer that is rendered for it (None: its scores, or its verdict).
    InputError where none is left.
    """
    assert examples.answer is not None
    starts = np.flatnonzero(np.diff(examples.record, prepend=-1))
    keep, values, groups = np.zeros(len(examples), dtype=bool), [], [0]
    out: dict[str, list[Any]] = {}
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(examples)], strict=True):
        record = records[int(examples.record[start])]
        wanted = (values_of or _values)(record)
        if len(np.unique(examples.answer[start:stop])) < len(wanted):
            why = _empty(record) or "an answer of theirs has nothing to score, or begins beyond train.max_length"
            out.setdefault(why, []).append(record.origin)
        elif compared and len(wanted) > 1 and len(set(wanted)) == 1 and wanted[0] == wanted[0]:
            out.setdefault("all their answers have the same score", []).append(record.origin)
        elif compared and isinstance(record, Preference) and _equal(examples, start, stop):
            out.setdefault(_same(record), []).append(record.origin)
        else:
            keep[start:stop] = True
            values += [wanted[a] for a in examples.answer[start:stop].tolist()]
            groups.append(groups[-1] + stop - start)
    for missing in np.setdiff1d(np.arange(len(records)), examples.record).tolist():
        if (silent := _empty(records[missing])) is not None:  # others are too long, which rendering tells
            out.setdefault(silent, []).append(records[missing].origin)
    said = [_left_out(origins, why) for why, origins in out.items()]
    if len(groups) == 1:
        raise InputError(f"no row is left to compare answers: {said[0]}." if said else "there are no rows to compare.")
    kept = examples if keep.all() else subset(examples, np.flatnonzero(keep))
    return replace(kept, groups=np.array(groups, dtype=np.int64), values=np.array(values, dtype=np.float32)), said


def _empty(record: Record) -> str | None:
    """Return which answer of a record is empty, in words; None where none is."""
    if isinstance(record, Verdict):
        return "the answer is empty" if is_empty(record.answer) else None
    if not isinstance(record, Preference) or not (empty := [is_empty(answer) for answer in record.answers]).count(True):
        return None
    if len(empty) > 2:
        return "an answer is empty"
    return "both answers are empty" if all(empty) else f"the {'chosen' if empty[0] else 'rejected'} answer is empty"


def _same(record: Preference) -> str:
    """Return in words that answers which have the same tokens are the same, by the record or only as far as they are read."""
    if any(answer != record.answers[0] for answer in record.answers):
        return "their answers are the same tokens within train.max_length"
    return "the chosen and the rejected answer are the same" if len(record.answers) == 2 else "all answers are the same"


def _values(record: Record) -> list[float]:
    """Return the value of each answer that is rendered for a record, NaN where it has none."""
    nan = float("nan")
    if isinstance(record, Preference):
        return list(record.scores) if record.scores is not None else [nan] * len(record.answers)
    assert isinstance(record, Verdict)
    return [float(record.good)]


def _equal(examples: Examples, start: int, stop: int) -> bool:
    """Whether all answers of a row have the same tokens."""
    assert examples.answer is not None
    parts: dict[int, list[bytes]] = {}
    for i, answer in zip(range(start, stop), examples.answer[start:stop].tolist(), strict=True):
        parts.setdefault(answer, []).append(examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tobytes())
    return len(set(map(tuple, parts.values()))) == 1


def _left_out(origins: Sequence[Any], why: str) -> str:
    more = f" and {len(origins) - 1:,} more" if len(origins) > 1 else ""
    return f"{origins[0]}{more}: left out, because {why}"


def subset(examples: Examples, kept: Indices) -> Examples:
    """Return the examples `kept` alone, without rows."""
    assert examples.answer is not None
    lengths = examples.lengths[kept]
    tokens = np.repeat(examples.offsets[kept] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    return Examples(
        ids=examples.ids[tokens],
        scored=examples.scored[tokens],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        record=examples.record[kept],
        origins=examples.origins,
        answer=examples.answer[kept],
    )
