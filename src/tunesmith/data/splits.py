"""The validation split: which rows are kept out of training, so that no prompt stands on both sides."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.data.records import Record, Text
from tunesmith.data.sources import Indices, Loaded, load
from tunesmith.errors import InputError, did_you_mean

DEFAULT_FRACTION = 0.05
DEFAULT_MOST = 500
KEYS = ("fraction", "path", "format", "columns", "split")


@dataclass(frozen=True)
class Split:
    """`loaded` (with the validation file's records after the others, if there is one), the indices of its records to train
    on and to validate on, in file order, and a sentence for people.
    """

    loaded: Loaded
    train: Indices
    validation: Indices
    sentence: str


def split(loaded: Loaded, validation: Any = None, seed: int = 0) -> Split:
    """Return the split the run file's `validation` asks for.

    None: 5% of the rows, at most 500, at least one. {"fraction": x}: that share. {"path": file or files} (and format, columns,
    split as in `data`): those rows instead. False: none. Rows with the same prompt stay on one side. InputError where the
    value is none of these.
    """
    count = len(loaded.records)
    if validation is False:
        return Split(loaded, np.arange(count), np.arange(0), "validation: none (validation is false)")
    wanted = {} if validation is None or validation is True else validation
    if not isinstance(wanted, Mapping):
        raise InputError(f"validation is {wanted!r}, expected {{fraction: 0.05}}, {{path: file}} or false.")
    for key in wanted:
        if key not in KEYS:
            raise InputError(f'validation has the unknown key "{key}".{did_you_mean(str(key), KEYS)}')
    if "path" in wanted:
        if "fraction" in wanted:
            raise InputError("validation names both a fraction and a path; give one of them.")
        return _from_files(loaded, wanted)
    fraction = wanted.get("fraction", DEFAULT_FRACTION)
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise InputError(f"validation.fraction is {fraction!r}, expected a number between 0 and 1, such as 0.05.")
    size = max(1, round(fraction * count))
    stated = "fraction" in wanted
    size = size if stated else min(size, DEFAULT_MOST)
    held_out = _draw(loaded.records, size, seed)
    train = np.setdiff1d(np.arange(count), held_out)
    if not len(held_out):
        return Split(
            loaded, train, held_out, f"validation: none ({count:,} rows with one prompt leave nothing to hold out)"
        )
    why = f"{fraction:.3g} of them, as stated" if stated else "the default: 5%, at most 500"
    sentence = (
        f"validation: {len(held_out):,} of {count:,} rows held out ({why}; seed {seed}; equal prompts stay together)"
    )
    return Split(loaded, train, held_out, sentence)


def prompt_key(record: Record) -> tuple[str, ...]:
    """Return what two records must share to count as the same prompt: the turns before the first answer, or the text."""
    if isinstance(record, Text):
        return (record.text,)
    key: list[str] = []
    for message in record.messages:
        if message["role"] == "assistant":
            break
        key += [message["role"], str(message["content"])]
    return tuple(key)


def _draw(records: list[Record], size: int, seed: int) -> Indices:
    """Draw whole groups of rows with one prompt until `size` rows are held out; a group that would overshoot is passed by."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[prompt_key(record)].append(index)
    listed = list(groups.values())
    if len(listed) < 2:
        return np.arange(0)
    order = np.random.default_rng(seed).permutation(len(listed))
    held_out: list[int] = []
    for g in order:
        if len(held_out) + len(listed[g]) <= size:
            held_out += listed[g]
        if len(held_out) == size:
            break
    return np.array(sorted(held_out or min(listed, key=len)), dtype=np.int64)


def _from_files(loaded: Loaded, wanted: Mapping[str, Any]) -> Split:
    paths = wanted["path"] if isinstance(wanted["path"], list) else [wanted["path"]]
    extra = load([{"split": "validation", **wanted, "path": path} for path in paths])
    count, more = len(loaded.records), len(extra.records)
    both = replace(
        loaded,
        records=loaded.records + extra.records,
        source=np.concatenate([loaded.source, extra.source + len(loaded.sources)]),
        sources=loaded.sources + extra.sources,
        files=loaded.files + [replace(info, source=info.source + len(loaded.sources)) for info in extra.files],
        notices=loaded.notices + extra.notices,
    )
    known = {prompt_key(record) for record in loaded.records}
    seen = sum(prompt_key(record) in known for record in extra.records)
    leak = f"; {seen:,} of their prompts are in the training data too" if seen else ""
    named = ", ".join(str(p) for p in paths)
    sentence = f"validation: {more:,} rows of {named}{leak}"
    return Split(both, np.arange(count), np.arange(count, count + more), sentence)
