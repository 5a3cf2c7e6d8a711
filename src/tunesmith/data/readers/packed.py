"""Opening a file of text, as it is or compressed, after a look at its first bytes."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin

BLOCK = 1 << 18
CODECS = {"gz": "gzip", "zst": "zstd"}
_NO_TEXT = {  # how files begin that are no UTF-8 text
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16; save it as UTF-8"),
    **dict.fromkeys((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"), "compressed; unpack it first"),
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or export it as CSV, first",
    b"PAR1": "Parquet; give it the ending .parquet",
    b"ARROW1": "Arrow; give it the ending .arrow",
}
_ENDINGS = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}


@contextlib.contextmanager
def opened(path: Path, packed: str | None, name: str) -> Iterator[BinaryIO]:
    """Give the file's bytes, decompressed; RowError where that fails, also later while they are read."""
    if packed is None:
        with open(path, "rb", buffering=BLOCK) as f:
            yield f
        return
    import pyarrow as pa

    with open(path, "rb") as raw:
        head = raw.read(4)
    if head and not any(head.startswith(magic) for magic, ending in _ENDINGS.items() if ending == packed):
        raise RowError(Origin(name, 0), None, "not_compressed", f"the file is not compressed by {CODECS[packed]}.")
    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, CODECS[packed]) as stream:
            yield cast(BinaryIO, io.BufferedReader(stream, BLOCK))
    except (pa.ArrowException, OSError) as error:  # damaged data is an OSError of pyarrow's
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RowError(
            Origin(name, 0), None, "broken_compression", f"the file cannot be unpacked ({first_line(error)})."
        ) from None


@contextlib.contextmanager
def text(path: Path, packed: str | None, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Give the bytes of a file of text, and how many a byte order mark takes at its beginning.

    RowError where it is empty or no UTF-8 text by its first bytes.
    """
    with opened(path, packed, name) as f:
        head = _peek(f)
        if not head:
            raise RowError(Origin(name, 0), None, "empty_file", "the file is empty.")
        for magic, what in _NO_TEXT.items():
            if head.startswith(magic):
                raise RowError(Origin(name, 0), None, "not_text", f"the file is {what}.")
        if b"\0" in head[:1000]:
            what = "no text (it has zero bytes, as UTF-16 has); save it as UTF-8"
            raise RowError(Origin(name, 0), None, "not_text", f"the file is {what}.")
        mark = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        f.read(mark)
        yield f, mark


def _peek(f: Any) -> bytes:
    found: bytes = f.peek(1000)
    return found


def not_utf8(error: UnicodeDecodeError, line: int, name: str) -> RowError:
    """Return the error of a line that is not UTF-8."""
    found = f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8."
    return RowError(Origin(name, line), None, "not_utf8", found)


def first_line(error: Exception) -> str:
    """Return the first line of what a library says of its failure."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")[:200]
