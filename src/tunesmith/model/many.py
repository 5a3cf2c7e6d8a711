"""Several adapters on one base, by name, and switching between them; `none` is the base alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import loading
from tunesmith.model.inference import Checked, check
from tunesmith.model.loading import ModelSource

NONE = "none"
Given = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


def named(adapters: Given) -> dict[str, str | None]:
    """Return name -> folder of adapters given as DIR or NAME=DIR, in their order; `none` has no folder.

    A name that is not given is the folder's, or of a run's result the run's. InputError where two have one name.
    """
    found: dict[str, str | None] = {}
    for one in [adapters] if isinstance(adapters, str | os.PathLike) else adapters or ():
        given = os.fspath(one)
        name, equals, folder = given.partition("=")
        if given == NONE:
            name, folder = NONE, ""
        elif not equals or Path(given).exists():
            name, folder = _name(given), given
        if not name or (not folder and name != NONE):
            raise InputError(f'an adapter is given by its folder, or as NAME=DIR; found "{given}".')
        if folder and found.get(name) == folder:
            raise InputError(f"the adapter {folder} is given twice; once is enough.")
        if name in found:
            raise InputError(
                f'two adapters are named "{name}", {found[name] or NONE} and {folder or NONE}; name one, as in {name}2={folder}.'
            )
        if name == NONE and folder:
            raise InputError(f'"{NONE}" is the model without an adapter; give {folder} another name.')
        found[name] = folder or None
    return found


def _name(folder: str) -> str:
    path = Path(folder).absolute()
    return path.parent.name if path.name == "result" else path.name


@dataclass(frozen=True)
class Several:
    """What can answer, by name: every one with its own tokenizer, for the template an adapter was trained with travels with it."""

    choices: dict[str, Checked]

    @property
    def notices(self) -> list[str]:
        """Sentences for people, each once."""
        return list(dict.fromkeys(n for choice in self.choices.values() for n in choice.notices))

    def load(self) -> Any:
        """Return the base with all adapters on it, as Checked.load does; the first is switched on."""
        adapters = self._adapters()
        model = self.choices[adapters[0] if adapters else NONE].load()
        for number, name in enumerate(adapters[1:], 1):
            folder = self.choices[name].source.adapter
            model.load_adapter(folder, adapter_name=_inside(number), autocast_adapter_dtype=False)
        return model.eval().requires_grad_(False)

    @contextmanager
    def using(self, model: Any, name: str) -> Iterator[Any]:
        """Within it `model`, as `load` returned it, answers as that choice; gives its tokenizer."""
        adapters = self._adapters()
        if adapters and name == NONE:
            with model.disable_adapter():
                yield self.choices[name].tokenizer
            return
        if len(adapters) > 1:
            model.set_adapter(_inside(adapters.index(name)))
            model.requires_grad_(False)
        yield self.choices[name].tokenizer

    def _adapters(self) -> list[str]:
        return [name for name, choice in self.choices.items() if choice.source.adapter]


def _inside(number: int) -> str:
    """Return what PEFT calls an adapter: people's names may hold dots, or be part of its own words, which it takes amiss."""
    return f"number{number}" if number else "default"


def check_several(
    model: str,
    adapters: dict[str, str | None],
    device: str | None = None,
    base: bool = False,
    quantize: str | None = None,
) -> Several:
    """Find a model, adapters of it as `named` gives them, and a device; no weight is loaded yet.

    base: the model without an adapter is among the choices even where it is not asked for. quantize: as in `check`.
    InputError where an adapter does not fit the model, or they are of kinds that one model cannot hold together.
    """
    choices = {name: check(model, folder, device, quantize) for name, folder in adapters.items() if folder}
    plain = loading.resolve(model)
    if not choices and plain.adapter:
        choices[_name(plain.adapter)] = check(model, None, device, quantize)
    sources = {name: choice.source for name, choice in choices.items()}
    _check_together(sources)
    base = not _brings_rows(sources, NONE in adapters) and base
    if base or NONE in adapters or not choices:
        alone = check(plain.base, None, device, quantize)
        position = list(adapters).index(NONE) if NONE in adapters else len(choices)
        listed = list(choices.items())
        choices = dict([*listed[:position], (NONE, alone), *listed[position:]])
    return Several(choices)


def _brings_rows(sources: dict[str, ModelSource], base: bool) -> bool:
    """Return whether an adapter brings rows of tokens, which are written into the model; InputError where it is not alone then."""
    from tunesmith.model import token_files

    found = next((s.adapter for s in sources.values() if s.adapter and token_files.ids(s.adapter)), None)
    if found is not None and (base or len(sources) > 1):
        raise InputError(
            f"{found} brings rows of tokens of its own, which become part of the model's vocabulary and cannot be switched off; use it "
            "alone."
        )
    return found is not None


def _check_together(sources: dict[str, ModelSource]) -> None:
    """InputError unless one model can hold all of the adapters."""
    if len(sources) < 2:
        return
    from tunesmith.model import adapter_files

    kinds = {name: adapter_files.kind(str(source.adapter)) for name, source in sources.items()}
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind or kind == "BOTTLENECK":
            raise InputError(
                f"{sources[first].adapter} is an adapter of the kind {kind} and {sources[name].adapter} of {other}, which one model cannot "
                "hold together; use them one at a time."
            )
        source = sources[name]
        if source.quantize != sources[first].quantize:
            bases = [s.quantize.name if s.quantize else "not quantised" for s in (sources[first], source)]
            raise InputError(
                f"{sources[first].adapter} and {source.adapter} were trained on bases held in other ways ({bases[0]}, {bases[1]}), which "
                "one model cannot be at once; use them one at a time, or say with quantize how it is held for all."
            )
        adapter_files.check(str(source.adapter), loading.structure(source), source.base)


def choice(several: Several, name: str) -> str:
    """Return the name if it is one of the choices; InputError with the nearest spelling."""
    if name not in several.choices:
        raise InputError(f'there is no adapter named "{name}".{did_you_mean(name, several.choices)}')
    return name
