"""The built-in model, and the generator of its text and of data for every stage: everything works with no network."""

import hashlib
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.starter.data import write_data

__all__ = ["FILES", "MODEL", "checksums", "verify", "write_data"]

MODEL = Path(__file__).parent / "model"
FILES = [
    "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


def checksums(folder: Path = MODEL) -> str:
    """Return the SHA-256 of each file that ships, as `sha256sum` writes it: one "<hex>  <name>" a line."""
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES)


def verify(folder: Path = MODEL) -> None:
    """InputError that names the first file of the starter that is missing or is not the one SHA256SUMS describes."""
    missing = next((n for n in [*FILES, "SHA256SUMS"] if not (folder / n).is_file()), None)
    if missing:
        raise InputError(f"the starter's {missing} is not in {folder}; install tunesmith again.")
    wanted = (folder / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    for line in checksums(folder).splitlines():
        if line not in wanted:
            raise InputError(
                f"the starter's {line.split()[1]} in {folder} is damaged or changed; install tunesmith again."
            )
