"""Characters a vocabulary cannot spell: some tokenizers drop them silently, and the model never sees them."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Record, Text
from tunesmith.errors import InputError

MOST_LOST = 0.05  # of all characters
_CHUNK = 1 << 22  # characters counted at a time, in 16 bytes each


def check(records: Sequence[Record], tokenizer: Any) -> list[str]:
    """Return a warning that names the characters lost, the share of rows and the first rows; none where all is kept.

    InputError where over 5% of all characters are lost: such a model cannot learn from such data.
    """
    texts = [content(record) for record in records]
    counts = _counts(texts)
    bad = lost(set(map(chr, np.flatnonzero(counts).tolist())), tokenizer)
    if not bad:
        return []
    hit = [i for i, text in enumerate(texts) if not bad.isdisjoint(text)]
    often = sorted(bad, key=lambda c: (-counts[ord(c)], c))
    share = int(sum(counts[ord(c)] for c in bad)) / int(counts.sum())
    shown = " ".join(repr(c)[1:-1] if not c.isprintable() or c.isspace() else c for c in often[:20])
    more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
    first = records[hit[0]].origin
    rows = ", ".join(str(records[i].origin.row) for i in hit[:5] if records[i].origin.file == first.file)
    said = (
        f"the model's vocabulary cannot spell {shown}{more}: {share:.2%} of all characters, in {len(hit):,} of "
        f"{len(texts):,} rows ({len(hit) / len(texts):.0%}; {first.file}, row{'s' * (len(hit) > 1)} {rows}{', …' if len(hit) > 5 else ''})"
    )
    if share > MOST_LOST:
        raise InputError(
            f"{said}; over {MOST_LOST:.0%} is too much to learn from: use a model with a larger vocabulary."
        )
    return [f"{said}; they vanish from what the model reads and writes"]


def content(record: Record) -> str:
    """Return what a record says, without the template."""
    return record.text if isinstance(record, Text) else "\n".join(str(m["content"]) for m in record.messages)


def _counts(texts: list[str]) -> npt.NDArray[np.int64]:
    """Return how often each code point occurs; in arrays, some five times as fast as sets of strings."""
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for chunk in _chunks(texts):
        points = np.frombuffer(chunk.encode("utf-32-le", "surrogatepass"), "<u4")
        counts += np.bincount(points, minlength=len(counts))
    return counts


def _chunks(texts: list[str]) -> Iterator[str]:
    """Yield all the text in pieces of about _CHUNK characters, however long or short the texts are."""
    waiting, size = [], 0
    for text in texts:
        for start in range(0, len(text), _CHUNK):
            waiting.append(text[start : start + _CHUNK])
            size += len(waiting[-1])
            if size >= _CHUNK:
                yield "".join(waiting)
                waiting, size = [], 0
    yield "".join(waiting)


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
