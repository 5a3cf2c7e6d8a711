"""Freezing: a part of the model's own weights is trained, the rest stays; the result is a transformers folder.

Which part: the last layers, parameters by name, or, as Spectrum does (Hartford et al., 2024, arXiv 2406.06623), the matrices with the
highest ratio of signal to noise among those of the same kind.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from tunesmith.errors import InputError
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.adapters._lora import refuse_quantized

RATE = 1.0  # whole weights, as in full fine-tuning


def attach(
    model: Any,
    *,
    layers: Annotated[int, Field(gt=0)] | None = None,
    pattern: str | list[str] | None = None,
    spectrum: Annotated[float, Field(gt=0, le=1)] | None = None,
) -> Attached:
    """Train what is named, all else is frozen; what several options name is trained together. Without any: the last two layers.

    layers: the last so many, whole. pattern: regular expressions, found anywhere in a parameter's name ("norm", "layers.0."). spectrum:
    the share of matrices of each kind ("mlp.up_proj") in the layers, those with most signal first; a model without weights (meta)
    has any of the right number. InputError where one names nothing.
    """
    refuse_quantized(model, "adapter freeze trains weights of the model itself")
    names = [n for n, _ in model.named_parameters()]
    found: set[str] = set()
    if layers is not None or (pattern is None and spectrum is None):
        found |= set(last_layers(model, layers or 2))
    for expression in [pattern] if isinstance(pattern, str) else pattern or []:
        found |= set(_matching(expression, names))
    notices = []
    if spectrum is not None:
        chosen = spectrum_like(model, spectrum)
        found |= chosen
        notices = [f"spectrum: {len(chosen)} matrices are trained, those with most signal of each kind"]
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_(name in found)
    return Attached(model, notices=tuple(notices))


def last_layers(model: Any, count: int) -> list[str]:
    """Return the names of the parameters in the last `count` layers; InputError where there are fewer."""
    n = model.config.get_text_config().num_hidden_layers
    if count > n:
        raise InputError(f"adapter.layers is {count}, but this model has {n} layers.")
    return [name for name, _ in model.named_parameters() if (at := _layer(name)) is not None and at >= n - count]


def _layer(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def _matching(expression: str, names: list[str]) -> list[str]:
    try:
        found = [n for n in names if re.search(expression, n)]
    except re.error as e:
        raise InputError(f'adapter.pattern "{expression}" is no regular expression ({e}).') from e
    if not found:
        kinds = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in names})
        raise InputError(
            f'adapter.pattern "{expression}" is found in no parameter\'s name; they end in {", ".join(kinds)}, and layers are numbered '
            '(as "layers.0.").'
        )
    return found


def spectrum_like(model: Any, share: float) -> set[str]:
    """Return the names of the share (rounded down, one at least) of each kind's matrices in the layers, those with most signal."""
    kinds: dict[str, list[str]] = {}
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if p.ndim == 2 and _layer(name) is not None:
            kinds.setdefault(re.sub(r"^.*?\.\d+\.", "", name), []).append(name)
    if not kinds:
        raise InputError(
            "adapter.spectrum finds no matrices in this model's layers; use adapter.layers or adapter.pattern."
        )
    chosen: set[str] = set()
    for names in kinds.values():
        count = max(1, int(len(names) * share))
        chosen |= set(_first(names, parameters, count))
    return chosen


def _first(names: list[str], parameters: dict[str, Any], count: int) -> Iterable[str]:
    if count == len(names):
        return names
    if parameters[names[0]].device.type == "meta":  # the largest: of this size at most are trained
        return sorted(names, key=lambda n: -parameters[n].numel())[:count]
    return sorted(names, key=lambda n: -signal_to_noise(parameters[n]))[:count]


def signal_to_noise(weight: Any) -> float:
    """Return a matrix's ratio of signal to noise: its singular values above a threshold over those below, in sums, over the largest.

    The threshold is Marchenko and Pastur's bound for a matrix of noise, sigma (1 + sqrt(n / m)), with sigma from the interquartile
    range of the singular values, as the authors' program computes it.
    """
    import torch

    values = torch.linalg.svdvals(weight.detach().float())
    quarter, three = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    ratio = min(weight.shape) / max(weight.shape)
    threshold = (three - quarter) / 1.349 * (1 + ratio**0.5)
    above = values > threshold
    if bool(above.all()):
        return float("inf")
    return float(values[above].sum() / values[~above].sum() / values[0].clamp(min=1e-30))
