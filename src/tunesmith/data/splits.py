"""Splits: which rows are kept out of training, so that nothing that belongs together stands on both sides.

Used by the validation split of training, and by the preparation step `split`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.content import prompt_turns, said
from tunesmith.data.records import Record, Text
from tunesmith.data.sources import Indices, Loaded, load
from tunesmith.errors import InputError, did_you_mean

DEFAULT_FRACTION = 0.05
DEFAULT_MOST = 500
NONE = np.iinfo(np.int64).min  # the key of a row that belongs to no group by that key
Keys = npt.NDArray[np.int64]


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


def from_files(
    records: Sequence[Record], validation: Mapping[str, Any], reads: Sequence[type] | None = None
) -> tuple[Loaded, str]:
    """Return the rows of validation["path"] (a file or a list; the other keys as in `data`), and a sentence.

    reads: the kinds kept of rows that make several (sources.load). The sentence says how many of their prompts are among the
    training `records` too.
    """
    path = validation["path"]
    paths = path if isinstance(path, list) else [path]
    held_out = load([{"split": "validation", **validation, "path": p} for p in paths], reads)
    known = {prompt_hash(record) for record in records}
    seen = sum(prompt_hash(record) in known for record in held_out.records)
    leak = f"; {seen:,} of their prompts are in the training data too" if seen else ""
    named = ", ".join(str(p) for p in paths)
    return held_out, f"validation: the {len(held_out.records):,} rows of {named}{leak}"


def prompt_key(record: Record) -> tuple[str, ...]:
    """Return what two records share if they are the same prompt: the turns before the first answer, or the text.

    Of a chat in which nobody asks anything before the first answer it is all that is said.
    """
    if isinstance(record, Text):
        return (record.text,)
    asked = prompt_turns(record)
    if not any(m["role"] != "system" for m in asked):
        return (said(record),)
    return tuple(part for m in asked for part in (m["role"], str(m["content"])))


def prompt_hash(record: Record) -> int:
    """Return 64 bits of prompt_key, a signed number."""
    return hashed(*prompt_key(record))


def hashed(*parts: str) -> int:
    """Return 64 bits of these texts as a signed number, never NONE."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return max(int.from_bytes(digest, "little", signed=True), int(NONE) + 1)


def united(keys: Sequence[Keys], links: tuple[Indices, Indices] | None = None) -> Indices:
    """Return each row's group, (N,), named by its lowest row: rows are together that share a key in any of `keys`, also by way
    of others. keys: (N,) each, NONE where a row has none. links: pairs of rows that belong together as well.
    """
    labels = np.arange(len(keys[0]) if keys else 0)
    coded = []
    for key in keys:
        has = np.flatnonzero(key != NONE)
        codes = np.unique(key[has], return_inverse=True)[1]
        coded.append((has, codes, int(codes.max()) + 1 if len(has) else 0))
    while True:
        before = labels.copy()
        for has, codes, count in coded:
            lowest = np.full(count, len(labels))
            np.minimum.at(lowest, codes, labels[has])
            labels[has] = lowest[codes]
        if links is not None:
            lowest = np.minimum(labels[links[0]], labels[links[1]])
            np.minimum.at(labels, links[0], lowest)
            np.minimum.at(labels, links[1], lowest)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def scrambled(keys: Keys, seed: int, salt: str) -> npt.NDArray[np.uint64]:
    """Return a number per key that looks drawn at random, and is the same for the same key, seed and salt (splitmix64)."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) ^ np.uint64(hashed(str(seed), salt) & (2**64 - 1))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def take(sizes: Indices, order: Indices, target: int) -> Indices:
    """Return the groups, in `order`, that together hold `target` rows; one that would overshoot is passed by.

    Where not even one fits, the smallest is taken, if it leaves another.
    """
    taken, total = [], 0
    for group in order.tolist():
        if total == target:
            break
        if total + sizes[group] <= target:
            taken.append(group)
            total += int(sizes[group])
    if not taken and target > 0 and len(order) > 1:
        taken = [int(order[np.argmin(sizes[order])])]
    return np.array(taken, dtype=np.int64)


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
    keys = np.fromiter((prompt_hash(record) for record in records), np.int64, len(records))
    first, group = np.unique(united([keys]), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    held_out = take(np.bincount(group, minlength=len(first)), order, size) if len(first) > 1 else first[:0]
    return np.flatnonzero(np.isin(group, held_out))
