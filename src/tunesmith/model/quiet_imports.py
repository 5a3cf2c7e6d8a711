"""How libraries that only some runs use are imported: without their warnings, and without native code fetched from the hub."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Quiet(MetaPathFinder):
    """Finds bitsandbytes and torchao, and what is in them, as Python does, and has them imported by `_quietly`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module of the two is; None for any other, which the next finder finds."""
        if fullname.partition(".")[0] not in ("bitsandbytes", "torchao"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            loader.exec_module = partial(_quietly, loader.exec_module)
        return spec


def _quietly(run: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Run a module's code while `kernels`, by which bitsandbytes fetches and runs native code on some CPUs, seems absent."""
    modules: dict[str, Any] = sys.modules
    held, level = modules.get("kernels", module), logging.root.manager.disable
    modules["kernels"] = None
    logging.disable(logging.WARNING)  # what could not be loaded is told where it is asked for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(module)
    finally:
        logging.disable(level)
        del modules["kernels"]
        if held is not module:
            modules["kernels"] = held
