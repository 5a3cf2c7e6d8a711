"""Characters a vocabulary cannot spell: some tokenizers drop them silently, and the model never sees them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from tunesmith.data.records import Record, Text
from tunesmith.errors import InputError

MOST_LOST = 0.05  # of all characters


def check(records: Sequence[Record], tokenizer: Any) -> list[str]:
    """Return a warning that names the characters lost, the share of rows and the first rows; none where all is kept.

    InputError where over 5% of all characters are lost: such a model cannot learn from such data.
    """
    texts = [content(record) for record in records]
    bad = lost(set().union(*map(set, texts)), tokenizer)
    if not bad:
        return []
    hit = [i for i, text in enumerate(texts) if not bad.isdisjoint(text)]
    counted = Counter(c for i in hit for c in texts[i] if c in bad)
    total = sum(map(len, texts))
    share = sum(counted.values()) / total
    shown = " ".join(repr(c)[1:-1] if not c.isprintable() or c.isspace() else c for c, _ in counted.most_common(20))
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
