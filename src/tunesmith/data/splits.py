"""The validation split: which rows are kept out of training, so that no prompt stands on both sides."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.data.records import Record, Text
from tunesmith.data.sources import Indices, Loaded, load
from tunesmith.errors import InputError, did_you_mean

DEFAULT_FRACTION = 0.05
DEFAULT_MOST = 500


def split(records: Sequence[Record], validation: Any = None, seed: int = 0) -> tuple[Indices, Indices, str]:
    """Return (the indices to train on, those to validate on, a sentence for people); indices in the records' order.

    validation None: 5% of the rows, at most 500, at least one. {"fraction": x}: that share. False: none. Rows with the
    same prompt stay on one side. ({"path": ...} is `from_files`.) InputError where the value is none of these.
    """
    count = len(records)
    if validation is False:
        return np.arange(count), np.arange(0), "validation: none (validation is false)"
    fraction = _fraction(validation)
    size = max(1, round((fraction or DEFAULT_FRACTION) * count))
    held_out = _draw(records, size if fraction else min(size, DEFAULT_MOST), seed)
    train = np.setdiff1d(np.arange(count), held_out)
    if not len(held_out):
        return train, held_out, f"validation: none ({count:,} rows with one prompt leave nothing to hold out)"
    why = f"{fraction:.3g} of them, as stated" if fraction else "the default: 5%, at most 500"
    sentence = f"validation: {len(held_out):,} of {count:,} rows held out ({why}; equal prompts stay together)"
    return train, held_out, sentence


def from_files(records: Sequence[Record], validation: Mapping[str, Any]) -> tuple[Loaded, str]:
    """Return the rows of validation["path"] (a file or a list; format, columns, split as in `data`), and a sentence.

    The sentence says how many of their prompts are among the training `records` too.
    """
    path = validation["path"]
    paths = path if isinstance(path, list) else [path]
    held_out = load([{"split": "validation", **validation, "path": p} for p in paths])
    known = {prompt_key(record) for record in records}
    seen = sum(prompt_key(record) in known for record in held_out.records)
    leak = f"; {seen:,} of their prompts are in the training data too" if seen else ""
    named = ", ".join(str(p) for p in paths)
    return held_out, f"validation: the {len(held_out.records):,} rows of {named}{leak}"


def prompt_key(record: Record) -> tuple[str, ...]:
    """Return what two records share if they are the same prompt: the turns before the first answer, or the text."""
    if isinstance(record, Text):
        return (record.text,)
    key: list[str] = []
    for message in record.messages:
        if message["role"] == "assistant":
            break
        key += [message["role"], str(message["content"])]
    return tuple(key)


def _fraction(validation: Any) -> float | None:
    """Return the stated fraction, None where it is left to the default."""
    if validation is None or validation is True:
        return None
    if not isinstance(validation, Mapping):
        raise InputError(f"validation is {validation!r}, expected {{fraction: 0.05}}, {{path: file}} or false.")
    for key in validation:
        if key != "fraction":
            known = did_you_mean(str(key), ("fraction", "path"))
            raise InputError(f'validation has the key "{key}", which cannot stand here.{known}')
    fraction = validation.get("fraction")
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise InputError(f"validation.fraction is {fraction!r}, expected a number between 0 and 1, such as 0.05.")
    return float(fraction)


def _draw(records: Sequence[Record], size: int, seed: int) -> Indices:
    """Draw whole groups of rows with one prompt until `size` rows are held out; one that would overshoot is passed by."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[prompt_key(record)].append(index)
    listed = list(groups.values())
    if len(listed) < 2:
        return np.arange(0)
    held_out: list[int] = []
    for g in np.random.default_rng(seed).permutation(len(listed)):
        if len(held_out) + len(listed[g]) <= size:
            held_out += listed[g]
        if len(held_out) == size:
            break
    if not held_out:
        held_out = sorted(listed, key=len)[0]
    return np.array(sorted(held_out), dtype=np.int64)
