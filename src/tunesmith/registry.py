"""Name -> module, built from file names: adding an objective, a metric or a format is adding one file."""

import importlib
import pkgutil
from types import ModuleType

from tunesmith.errors import InputError, did_you_mean


def names(package: str) -> list[str]:
    """Return the public names in a package of ours ("training.objectives" -> ["pretrain", "sft"]) without importing them."""
    module = importlib.import_module(f"tunesmith.{package}")
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def kind(package: str) -> str:
    """Return what a package holds, for messages: "training.objectives" -> "objective", "data.synthesis" -> "synthesis"."""
    name = package.rsplit(".", 1)[-1]
    return name if name.endswith("is") else name.removesuffix("s")


def load(package: str, name: str) -> ModuleType:
    """Import and return `tunesmith.<package>.<name>`; InputError with the nearest spelling where there is none."""
    known = names(package)
    if name not in known:
        raise InputError(f'there is no {kind(package)} named "{name}".{did_you_mean(name, known)}')
    return importlib.import_module(f"tunesmith.{package}.{name}")
