"""How far a merged adapter is from each of its parts and from their weighted sum, by the changes they make to the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.model.merging import Layer, Layers


def compare(parts: Sequence[Layers], weights: Sequence[float], merged: Layers) -> dict[str, Any]:
    """Return what the merged adapter's change of the model is beside those of its parts and beside their weighted sum.

    {"norm", "weighted_sum_norm", "distance_to_weighted_sum", "parts": [{"weight", "norm", "cosine", "distance", "modules"}]}: Frobenius
    norms over all layers together; distance and cosine of a part to the merge, "modules" the cosines over the layers of one name
    (q_proj); None where a norm is 0.
    """
    grams = {
        key: _gram([own.get(key) for own in (*parts, merged)]) for key in dict.fromkeys(k for p in parts for k in p)
    }
    whole = torch.stack(list(grams.values())).sum(0)
    names: dict[str, Tensor] = {}
    for (module, _), gram in grams.items():
        name = module.rsplit(".", 1)[-1]
        names[name] = names.get(name, torch.zeros_like(gram)) + gram
    n = len(parts)
    away = torch.tensor([*weights, -1.0], dtype=torch.float64)
    rows = [
        {
            "weight": weights[i],
            "norm": _root(whole[i, i]),
            "cosine": _cosine(whole, i, n),
            "distance": _root(whole[i, i] - 2 * whole[i, n] + whole[n, n]),
            "modules": {name: _cosine(gram, i, n) for name, gram in sorted(names.items())},
        }
        for i in range(n)
    ]
    wanted = away[:n] @ whole[:n, :n] @ away[:n]
    return {
        "norm": _root(whole[n, n]),
        "weighted_sum_norm": _root(wanted),
        "distance_to_weighted_sum": _root(away @ whole @ away),
        "parts": rows,
    }


def _gram(layers: Sequence[Layer | None]) -> Tensor:
    """Return the inner products of the layers' deltas, (n,n) float64: <s B A, s' B' A'> = s s' sum (B^T B' * A A'^T)."""
    there = [(i, layer) for i, layer in enumerate(layers) if layer is not None]
    found = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    if not there:
        return found
    a = torch.cat([layer.a for _, layer in there]).double()
    b = torch.cat([layer.b * layer.scale for _, layer in there], 1).double()
    sizes = [len(layer.a) for _, layer in there]
    for (i, _), row in zip(there, ((b.t() @ b) * (a @ a.t())).split(sizes), strict=True):
        for (j, _), block in zip(there, row.split(sizes, 1), strict=True):
            found[i, j] = block.sum()
    return found


def _root(square: Tensor) -> float:
    return float(square.clamp(min=0).sqrt())


def _cosine(gram: Tensor, i: int, j: int) -> float | None:
    norms = _root(gram[i, i]) * _root(gram[j, j])
    return float(gram[i, j]) / norms if norms else None
