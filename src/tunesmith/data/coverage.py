"""Characters a vocabulary cannot spell: some tokenizers drop them silently, and the model never sees them."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from tunesmith.data.content import said
from tunesmith.data.records import Origin, Record
from tunesmith.data.tally import Tally
from tunesmith.errors import InputError

MOST_LOST = 0.05  # of all characters
_CHUNK = 1 << 22  # characters counted at a time, in 16 bytes each


def check(records: Iterable[Record], tokenizer: Any) -> list[str]:
    """Return a warning that names the characters lost, the share of rows and the first rows; none where all is kept.

    The records are gone through once, some megabytes at a time. InputError where over 5% of all characters are lost:
    such a model cannot learn from such data.
    """
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    bad: set[str] = set()
    hit, rows = Tally(), 0
    for chunk in _chunks(records):
        before = counts > 0
        for points in _points([text for _, text in chunk]):
            counts += np.bincount(points, minlength=len(counts))
        bad |= lost(set(map(chr, np.flatnonzero((counts > 0) & ~before).tolist())), tokenizer)
        for origin, text in chunk if bad else ():
            if not bad.isdisjoint(text):
                hit.add(origin)
        rows += len(chunk)
    if not bad:
        return []
    share = int(sum(counts[ord(c)] for c in bad)) / int(counts.sum())
    sentence = f"{_spelling(bad, counts)}: {share:.2%} of all characters, {_place(hit, rows)}"
    if share > MOST_LOST:
        raise InputError(
            f"{sentence}; over {MOST_LOST:.0%} is too much to learn from: use a model with a larger vocabulary."
        )
    return [f"{sentence}; they vanish from what the model reads and writes"]


def _spelling(bad: set[str], counts: npt.NDArray[np.int64]) -> str:
    often = sorted(bad, key=lambda c: (-counts[ord(c)], c))
    shown = " ".join(repr(c)[1:-1] if not c.isprintable() or c.isspace() else c for c in often[:20])
    more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
    return f"the model's vocabulary cannot spell {shown}{more}"


def _place(hit: Tally, rows: int) -> str:
    named = ", ".join(str(origin.row) for origin in hit.first)
    more = ", …" if hit.n > 5 else ""
    return (
        f"in {hit.n:,} of {rows:,} rows ({hit.n / rows:.0%}; {hit.first[0].file}, row{'s' * (hit.n > 1)} {named}{more})"
    )


def _chunks(records: Iterable[Record]) -> Iterator[list[tuple[Origin, str]]]:
    """Yield (origin, what it says) of all records in lists of about _CHUNK characters."""
    waiting: list[tuple[Origin, str]] = []
    size = 0
    for record in records:
        waiting.append((record.origin, said(record)))
        size += len(waiting[-1][1])
        if size >= _CHUNK:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _points(texts: list[str]) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the texts' code points; in arrays they are counted some five times as fast as in sets of strings."""
    whole = "".join(texts)
    for start in range(0, len(whole), _CHUNK):
        yield np.frombuffer(whole[start : start + _CHUNK].encode("utf-32-le", "surrogatepass"), "<u4")


def lost(characters: set[str], tokenizer: Any) -> set[str]:
    """Return those of the characters that encoding and decoding does not give back (compatible forms count as given)."""
    ordered = sorted(characters)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encodings = backend.encode_batch([f"a{c}a" for c in ordered], add_special_tokens=False)
    back = backend.decode_batch([e.ids for e in encodings], skip_special_tokens=True)
    unknown = tokenizer.unk_token or ""
    return {
        c for c, text in zip(ordered, back, strict=True) if not _kept(c, text.replace(unknown, "") if unknown else text)
    }


def _kept(character: str, text: str) -> bool:
    return character in text or normalize("NFKC", character) in normalize("NFKC", text)
