"""Rendered tokens kept between runs: found by a hash of all that made them, and memory-mapped, so that a second start is quick.

An entry is one file: a head (struct), a JSON header (key, lengths, notices), then the arrays as they lie in memory. It holds no
code. It is written beside and renamed, so two processes may write it at once, and its checksums tell a damaged one.
"""

import contextlib
import hashlib
import json
import marshal
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.layout import CLOCK
from tunesmith.data.lazy import Origins
from tunesmith.data.records import Examples, Record
from tunesmith.data.render import Score, render

MOST_BYTES = 20 * 10**9  # of all entries, and at most a tenth of the disk; the least recently used are dropped
ENDINGS = (".tokens", ".logps")  # of entries: rendered tokens, a reference's log-probs (training/reference_store.py)
LEAST_TOKENS = 50_000  # fewer are rendered as fast as they are found
_HEAD = struct.Struct("<8sQII")  # magic, bytes of the header, its CRC-32, CRC-32 of the arrays
_MAGIC = b"TUNETOK1"
_ARRAYS = (
    ("record", np.dtype("<i8")),
    ("offsets", np.dtype("<i8")),
    ("answer", np.dtype("<i4")),
    ("ids", np.dtype("<i4")),
    ("scored", np.dtype("?")),
)
_ALIGNED = 64
# Whose code is part of the key: what they do may change.
_RENDERERS = ("render.py", "layout.py", "coverage.py", "sandbox_child.py", "tally.py", "kinds.py", "content.py")


def rendered(
    records: Sequence[Record], tokenizer: Any, max_length: int | None = None, score: Score = "answers"
) -> tuple[Examples, list[str], list[str]]:
    """Return what render(...) returns, from the cache where it is there, and notices about the cache.

    A cache that cannot be used costs a notice, never the run. The arrays of an entry are read-only.
    """
    try:
        moment = _moment(tokenizer)
        file = folder_of_cache() / f"{key(records, tokenizer, max_length, score, moment)}.tokens"
    except (ValueError, OSError, RuntimeError):  # content without a plain form, no source files, no home: go without
        return *render(records, tokenizer, max_length, score), []
    said: list[str] = []
    try:
        found = _read(file, records)
    except (ValueError, KeyError, TypeError, struct.error) as e:
        found, said = None, [f"the cached tokens {file} are damaged ({_reason(e)}): the data is rendered anew"]
    if found is not None:
        return *found, said
    examples, notices = render(records, tokenizer, max_length, score, file.parent)
    if len(examples.ids) >= LEAST_TOKENS and moment == _moment(tokenizer):  # it was one day all the time
        said += _keep(file, examples, notices)
    return examples, notices, said


def folder_of_cache() -> Path:
    """Return $TUNESMITH_CACHE, else tunesmith/tokens in $XDG_CACHE_HOME or ~/.cache; RuntimeError where there is no home."""
    given, cache = os.environ.get("TUNESMITH_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given).expanduser()
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "tunesmith" / "tokens"


def key(records: Sequence[Record], tokenizer: Any, max_length: int | None, score: Score, moment: list[str]) -> str:
    """Return the SHA-256 of all that render's result depends on: every record and row number, tokenizer, template, versions, code.

    ValueError where a record holds what has no plain form (a date in a tool call, read from Parquet).
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    facts = {
        "versions": {name: metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")},
        "code": [hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest() for name in _RENDERERS],
        "tokenizer": type(tokenizer).__name__,
        "specials": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "special": sorted(map(str, tokenizer.all_special_tokens)),
        "added": {n: [str(t.content), t.special] for n, t in tokenizer.added_tokens_decoder.items()},
        "template": tokenizer.chat_template,
        "moment": moment,
        "max_length": max_length,
        "score": score,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(backend.to_str().encode("utf-8", "surrogatepass"))
    going = iter(records)
    while some := [_content(record) for record in islice(going, 1000)]:
        digest.update(marshal.dumps(some, 0))  # version 0 has no references between objects: equal content, equal bytes
    return digest.hexdigest()


def _content(record: Record) -> tuple[Any, ...]:
    said = [getattr(record, field.name) for field in fields(record) if field.name not in ("origin", "extra")]
    return (type(record).__name__, *said, record.origin.file, record.origin.row, record.origin.part)


def _moment(tokenizer: Any) -> list[str]:
    """Return what the template's clock says now (some write the date); ValueError where the template does not tell its formats."""
    templates = tokenizer.chat_template
    text = "\n".join(templates.values()) if isinstance(templates, dict) else templates or ""
    if "strftime_now" in CLOCK.sub("", text):
        raise ValueError("the template reads the clock")
    now = getattr(tokenizer, "clock", None) or datetime.now()
    return [now.strftime(found[1]) for found in CLOCK.findall(text) if found[0]]


def _read(file: Path, records: Sequence[Record]) -> tuple[Examples, list[str]] | None:
    """Return the entry, None where there is none; ValueError (or what a damaged header leads to) where it is damaged."""
    try:
        mapped = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
    except OSError:  # none there, or none that can be reached: writing it will tell
        return None
    magic, length, header_sum, sum_ = _HEAD.unpack(mapped[: _HEAD.size].tobytes())
    header = mapped[_HEAD.size : _HEAD.size + length].tobytes()
    if magic != _MAGIC or zlib.crc32(header) != header_sum:
        raise ValueError("its header is damaged")
    facts = json.loads(header)
    at = _aligned(_HEAD.size + length)
    if facts["key"] != file.stem or len(mapped) != at + sum(facts["lengths"][n] * d.itemsize for n, d in _ARRAYS):
        raise ValueError("its size is wrong")
    if zlib.crc32(mapped[at:].data) != sum_:
        raise ValueError("its checksum is wrong")
    arrays: dict[str, Any] = {}
    for name, dtype in _ARRAYS:
        stop = at + facts["lengths"][name] * dtype.itemsize
        arrays[name], at = mapped[at:stop].view(dtype), stop
    with contextlib.suppress(OSError):
        os.utime(file)  # it was used now
    return Examples(**arrays, origins=Origins(records)), facts["notices"]


def _keep(file: Path, examples: Examples, notices: list[str]) -> list[str]:
    """Write the entry of rendered tokens; as `keep`."""
    arrays = [np.ascontiguousarray(getattr(examples, name), dtype) for name, dtype in _ARRAYS]
    lengths = {name: len(array) for (name, _), array in zip(_ARRAYS, arrays, strict=True)}
    header = json.dumps({"key": file.stem, "lengths": lengths, "notices": notices}).encode()
    sum_ = 0
    for array in arrays:
        sum_ = zlib.crc32(array.data, sum_)
    head = _HEAD.pack(_MAGIC, len(header), zlib.crc32(header), sum_) + header
    return keep(file, [head.ljust(_aligned(len(head)), b"\0"), *(array.data for array in arrays)], "the tokens are")


def keep(file: Path, pieces: Sequence[Any], what: str) -> list[str]:
    """Write an entry, `pieces` of bytes, and drop old ones; return a notice ("the tokens are", for `what`) where that could not be."""
    beside = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what the rows say
        disk = shutil.disk_usage(file.parent)
        size, most = sum(memoryview(piece).nbytes for piece in pieces), min(MOST_BYTES, disk.total // 10)
        if size > min(most, disk.free // 2):
            return [f"{what} not kept for the next start: {size / 1e9:.1f} GB are too much for {file.parent}"]
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", suffix=".part", delete=False) as f:
            beside = Path(f.name)
            for piece in pieces:
                f.write(piece)
        beside.replace(file)
        _prune(file, most)
    except OSError as e:
        if beside is not None:
            beside.unlink(missing_ok=True)
        return [
            f"{what} not kept for the next start: {file.parent} cannot be written ({_reason(e)}); "
            "set TUNESMITH_CACHE to a folder that can be"
        ]
    return []


def _prune(kept: Path, most: int) -> None:
    """Drop the entries used longest ago until at most `most` bytes are left, and what writers that died left behind."""
    entries = sorted(_stats(p for e in ENDINGS for p in kept.parent.glob(f"*{e}")), key=lambda e: e[1].st_mtime)
    total = sum(stat.st_size for _, stat in entries)
    for path, stat in entries:
        if total > most and path != kept:
            path.unlink(missing_ok=True)
            total -= stat.st_size
    for path, stat in _stats(kept.parent.glob(".*.part")):
        if time.time() - stat.st_mtime > 86_400:
            path.unlink(missing_ok=True)


def _stats(paths: Iterator[Path]) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another process has dropped it
            found.append((path, path.stat()))
    return found


def _aligned(n: int) -> int:
    return -(-n // _ALIGNED) * _ALIGNED


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
