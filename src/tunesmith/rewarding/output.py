"""Rows of JSON lines, as training reads them, written whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data import kinds
from tunesmith.data.records import Record
from tunesmith.errors import InputError
from tunesmith.run import finite, write_bytes


def check(output: str) -> None:
    """InputError unless the file can be written and is not there yet."""
    path = Path(output).expanduser()
    if path.exists():
        raise InputError(f"{output} exists already; choose another --output, or move it away.")
    if path.suffix != ".jsonl":
        raise InputError(f"{output} is to hold JSON lines; give --output a name that ends with .jsonl.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or choose another --output.")


def write(output: str, records: Sequence[Record]) -> None:
    """Write a record a line, as kinds.to_row makes it."""
    lines = [json.dumps(finite(kinds.to_row(record)), ensure_ascii=False) + "\n" for record in records]
    write_bytes(Path(output).expanduser(), "".join(lines).encode())
