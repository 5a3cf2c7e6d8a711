"""Name -> module, built from file names: adding an objective, a metric or a format is adding one file."""

import importlib
import pkgutil
from types import ModuleType

from tunesmith.errors import InputError, did_you_mean


def names(package: str) -> list[str]:
    """Return the public names in a package of ours ("training.objectives" -> ["pretrain", "sft"]) without importing them."""
    module = importlib.import_module(f"tunesmith.{package}")
    return sorted(m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import and return `tunesmith.<package>.<name>`; InputError with the nearest spelling where there is none."""
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
        raise InputError(f'there is no {kind} named "{name}".{did_you_mean(name, known)}')
    return importlib.import_module(f"tunesmith.{package}.{name}")
