"""Parameter groups: matrices decay, vectors (norms, biases, scales) never do, and each has its ratio of the learning rate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

PORTION = 1 << 24  # numbers that a step over several tensors at once works on: its temporaries are as large


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Return whether a parameter has two dimensions or more. IA3's scales of (1, n) and experts' biases (experts, n) are vectors."""
    return sum(size > 1 for size in shape) >= 2 and not name.endswith("bias")


def groups(masters: Mapping[str, Tensor], ratios: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Return torch's parameter groups {"params", "weight_decay", "ratio"}, in the masters' order."""
    found: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, master in masters.items():
        ratio = ratios.get(name, 1.0)
        key = (is_matrix(name, master.shape), ratio)
        group = found.setdefault(key, {"params": [], "weight_decay": weight_decay if key[0] else 0.0, "ratio": ratio})
        group["params"].append(master)
    return sorted(found.values(), key=lambda g: (g["weight_decay"] == 0.0, g["ratio"]))


def portions(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters that have a gradient in lists of at most PORTION numbers (a larger one alone), for torch's _foreach."""
    portion: list[Tensor] = []
    for p in parameters:
        if p.grad is None:
            continue
        if portion and sum(q.numel() for q in portion) + p.numel() > PORTION:
            yield portion
            portion = []
        portion.append(p)
    if portion:
        yield portion
