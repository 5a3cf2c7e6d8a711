"""Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"), for matrices; AdamW for all else.

m = momentum m + (1 - momentum) g; u = O((1 - momentum) g + momentum m); w = (1 - lr decay) w - lr scale u, where O(X) of X = U S V^T is
about U V^T, by five Newton-Schulz steps X = a X + (b X X^T + c (X X^T)^2) X in bf16. scale is 0.2 sqrt(max(rows, columns)), with
which a weight moves as under AdamW (Liu et al., 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982), and AdamW's learning
rate serves for both; or ("original") sqrt(max(1, rows / columns)).

A matrix is taken as the model holds it: experts one by one, fused queries, keys and values as one, LoRA's A and B as two. Embeddings,
the head, and what is trained of them, vectors (norms, biases, scales) and prompts' virtual tokens are AdamW's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.training.optimizers import adamw, count
from tunesmith.training.optimizers._arguments import Beta, Betas, Decay, Rate
from tunesmith.training.optimizers._groups import groups, is_matrix

NAMES = re.compile(r"embed|wte|wpe|lm_head|prompt|(^|\.)(score|classifier|output)\.")
"""Parameters whose rows stand for tokens, positions or classes, by what models call them."""
A, B, C = 3.4445, -4.7750, 2.0315  # of Newton-Schulz: steepest at 0, singular values end between 0.7 and 1.2
STEPS = 5
RATE = 3  # over a few hundred steps AdamW's weights move more than by 0.2 of its rate; measured on the starter


def STATE_BYTES(name: str, shape: Sequence[int]) -> int:  # noqa: N802 (a number in the other optimizers)
    """Return 4 bytes for every number of a hidden matrix, AdamW's 8 for others."""
    return (4 if is_hidden(name, shape) else adamw.STATE_BYTES) * count(shape)


def is_hidden(name: str, shape: Sequence[int]) -> bool:
    """Return whether a parameter is a matrix between hidden states, which Muon is for."""
    return is_matrix(name, shape) and not NAMES.search(name)


@torch.no_grad()
def orthogonal(matrix: Tensor) -> Tensor:
    """Return nearly U V^T of (..., rows, columns) = U S V^T, in bf16; zeros stay zeros."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(STEPS):
        square = x @ x.mT
        x = add(x, add(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Groups hold lr, weight_decay, momentum, nesterov and adjust_lr_fn; parameters are matrices (..., rows, columns)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step; the gradients stay as they are."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        average = self.state[p]["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = orthogonal(grad.lerp(average, group["momentum"]) if group["nesterov"] else average)
        rows, columns = p.shape[-2:]
        like_adamw = group["adjust_lr_fn"] == "match_rms_adamw"
        scale = 0.2 * math.sqrt(max(rows, columns)) if like_adamw else math.sqrt(max(1, rows / columns))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * scale)


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one: it has their groups and their state."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step of each."""
        for part in self.parts:
            part.step()


def make(
    masters: dict[str, Tensor],
    ratios: Mapping[str, float] | None = None,
    *,
    learning_rate: Rate,
    weight_decay: Decay = 0.0,
    momentum: Beta = 0.95,
    nesterov: bool = True,
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    betas: Betas = (0.9, 0.999),
    eps: Rate = 1e-8,
) -> torch.optim.Optimizer:
    """Return Muon over the hidden matrices and AdamW (betas, eps) over the rest, as one optimizer."""
    hidden = {name: m for name, m in masters.items() if is_hidden(name, m.shape)}
    rest = {name: m for name, m in masters.items() if name not in hidden}
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        given = {"lr": learning_rate, "momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
        parts.append(Muon(groups(hidden, ratios or {}, weight_decay), given))
    if rest:
        options = {"learning_rate": learning_rate, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        parts.append(adamw.make(rest, ratios, **options))  # type: ignore[arg-type]
    return Together(parts)
