"""What `merge` is asked for, checked before weights are loaded: adapters of one base, a way to merge them, and its settings."""

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.model import adapter_files, loading, many
from tunesmith.model.loading import ModelSource

TAKEN = ("base", "merged")  # names in the report


def sources_of(adapters: many.Given, model: str | None) -> dict[str, ModelSource]:
    """Return adapters given as DIR or NAME=DIR by name, each with its base; `model` is the base, where they name another place of it.

    InputError where one is no adapter, a file of it is damaged, two have different bases, or one does not fit its base.
    """
    named = many.named(adapters)
    found: dict[str, ModelSource] = {}
    for name, given in named.items():
        if given is None or name in TAKEN:
            raise InputError(
                f'"{name}" is no name for an adapter here; give another, as in my-{name}={given or "DIR"}.'
            )
        if not Path(given).exists():  # a name alone would pass for a hub id
            raise InputError(f"there is no adapter's folder {given}.")
        source = loading.resolve(given) if model is None else loading.resolve(model, given)
        if source.adapter is None:
            raise InputError(f"{given} holds a whole model, no adapter; merge takes adapters.")
        loading.check_weights(source)
        found[name] = source
    if not found:
        raise InputError("there is nothing to merge: name two adapters or more.")
    first, *others = found.values()
    for other in others:
        if other.base != first.base:
            raise InputError(
                f"{first.adapter} and {other.adapter} are adapters of different models, {first.base} and {other.base}; if these are "
                "one model in two places, name one of them with --model."
            )
    for source in found.values():
        if (
            model is not None or Path(source.base).is_dir()
        ):  # a base that is not here needs not be, to add up its adapters
            adapter_files.check(str(source.adapter), loading.structure(source), source.base)
    return found


def parts(sources: dict[str, ModelSource]) -> list[dict[str, Any]]:
    """Return the recipe's parts: {"name", "adapter" (the folder), "sha256" (of its weights' file)}."""

    def checksum(adapter: str) -> str:
        with (Path(adapter) / "adapter_model.safetensors").open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()

    folders = {name: str(Path(str(source.adapter)).resolve()) for name, source in sources.items()}
    return [{"name": name, "adapter": folder, "sha256": checksum(folder)} for name, folder in folders.items()]


def refuse_output(folder: Path) -> None:
    """InputError where the output is there already, or cannot be written."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"the output {folder} is there already; choose another --output.")
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".tunesmith-", dir=existing))  # permissions do not tell of every file system
    except OSError as e:
        raise InputError(f"the output {folder} cannot be written in {existing}: {e.strerror}.") from e


def refuse_with_base(**given: Any) -> None:
    """InputError naming the first setting that is given although an adapter is merged into its base as it is."""
    found = next((name for name, value in given.items() if value is not None), None)
    if found:
        raise InputError(f"--into-base puts one adapter, as it is, into its base; leave --{found} out.")


def settings(
    n: int,
    weights: Sequence[float] | None,
    method: str | None,
    rank: int | None,
    density: float | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return the recipe's {"method", "weights"} and, where the method has them, "rank" (None: the parts'), "density", "seed"."""
    from tunesmith.model import merging

    name = merging.method_named(method or ("cat" if rank is None else "svd"))
    prunes = name.removesuffix("_svd") in merging.OPERATIONS
    if n == 1 and rank is None and weights is None:
        raise InputError(
            "one adapter alone is nothing to merge: name two or more, or give --into-base to put it into its base."
        )
    if rank is not None and not name.endswith("svd"):
        raise InputError(f"--rank goes with svd and the ways that end in _svd; {name} has the rank its parts give it.")
    if rank is not None and rank < 1:
        raise InputError(f"--rank is {rank}; it must be at least 1.")
    if density is not None and not prunes:
        raise InputError(f"--density goes with ties, dare and magnitude_prune; {name} keeps all numbers.")
    if seed is not None and "dare" not in name:
        raise InputError(f"--seed draws what dare keeps; {name} draws nothing.")
    if density is not None and not 0 < density <= 1:
        raise InputError(f"--density is {density:g}; it must be above 0 and at most 1.")
    chosen: dict[str, Any] = {"method": name, "weights": _weights(n, weights, name)}
    if name.endswith("svd"):
        chosen["rank"] = rank
    if prunes:
        chosen["density"] = merging.DENSITY if density is None else density
    return chosen | ({"seed": seed or 0} if "dare" in name else {})


def _weights(n: int, given: Sequence[float] | None, method: str) -> list[float]:
    from tunesmith.model import merging

    if given is None:
        return merging.default_weights(n, method)
    if not all(isinstance(w, int | float) for w in given):
        raise InputError(f"the weights should be a list of numbers, one for each adapter; found {given!r}.")
    found = [float(w) for w in given]
    if len(found) != n:
        raise InputError(f"--weights has {len(found)} of {n}: give one for each adapter, in their order.")
    if not all(math.isfinite(w) and w != 0 for w in found):
        raise InputError(
            f"--weights {','.join(f'{w:g}' for w in found)}: each must be a finite number and not 0; leave out what is not to count."
        )
    return found
