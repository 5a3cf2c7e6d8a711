"""Name -> module, built from file names: adding an objective, a metric or a format is adding one file."""

import importlib
import pkgutil
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import InputError, did_you_mean

SPELLED = {"lora_plus": "lora+", "p_tuning": "p-tuning"}
"""File names of what the field spells in a way that a file of Python cannot have."""


def names(package: str) -> list[str]:
    """Return the public names in a package of ours ("training.objectives" -> ["pretrain", "sft"]) without importing them."""
    module = importlib.import_module(f"tunesmith.{package}")
    files = [m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_")]
    return sorted(SPELLED.get(name, name) for name in files)


def kind(package: str) -> str:
    """Return what a package holds, for messages: "training.objectives" -> "objective", "data.synthesis" -> "synthesis"."""
    name = package.rsplit(".", 1)[-1]
    return name if name.endswith("is") else name.removesuffix("s")


def others(package: str) -> Any | None:
    """Return the package's `_other`, which has `names` and `load` for what has no file of its own; None for most packages."""
    file = f"tunesmith.{package}._other"
    return importlib.import_module(file) if find_spec(file) else None


def load(package: str, name: str) -> Any:
    """Import and return `tunesmith.<package>.<name>`; InputError with the nearest spelling where there is none."""
    known = names(package)
    if name not in known:
        other = others(package)
        if other is not None and (found := other.load(name)) is not None:
            return found
        hint = did_you_mean(name, known)
        far = did_you_mean(name, other.names()) if other and not hint.startswith(" Did") else ""
        hint = far if far.startswith(" Did") else hint
        elsewhere = getattr(importlib.import_module(f"tunesmith.{package}"), "ELSEWHERE", {})  # other tools' names
        hint = f' Did you mean "{elsewhere[name]}"?' if name in elsewhere else hint
        raise InputError(f'there is no {kind(package)} "{name}".{hint}')
    file = next((file for file, spelled in SPELLED.items() if spelled == name), name)
    return importlib.import_module(f"tunesmith.{package}.{file}")
