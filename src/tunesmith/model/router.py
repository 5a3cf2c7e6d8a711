"""The load-balancing loss of mixture-of-experts routers, over a whole step (Fedus et al., 2021, arXiv 2101.03961, eq. 4-6).

With n_e the tokens that were sent to expert e (each token to its top k), p_e the sum of the router's probabilities of e, and R the
rows that were routed, all layers together,

    aux = coefficient * E * sum_e (n_e / R) (p_e / R)

as transformers' load_balancing_loss_func has it. Only p is differentiable, and it is a sum over tokens: with n and R of the
whole step, the micro-batches' shares coefficient * E / R^2 * sum_e n_e p_e add up to the loss of the step, however it is cut.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import InputError


@dataclass(frozen=True)
class Router:
    """What a model's config asks of its routers: the loss's coefficient, and how many experts a token is sent to."""

    coefficient: float
    top_k: int

    def counts(self, logits: tuple[Tensor, ...], weights: Tensor | None) -> Tensor:
        """Return n (E) and R, one int64 tensor (E+1,): sums, so that those of micro-batches and processes add up.

        logits: a tensor (rows, E) per layer; weights (rows,) int64: how often each row counts (None: once).
        """
        total = torch.zeros(logits[0].shape[-1] + 1, dtype=torch.int64, device=logits[0].device)
        for layer in logits:
            chosen = torch.topk(layer.detach(), self.top_k, dim=-1).indices
            often = torch.ones_like(chosen[:, 0]) if weights is None else weights
            total.scatter_add_(0, chosen.flatten(), often.repeat_interleave(self.top_k))
            total[-1] += often.sum()
        return total

    def probabilities(self, logits: tuple[Tensor, ...], weights: Tensor | None) -> Tensor:
        """Return p, float32 (float64 for float64 logits), (E,), differentiable; logits and weights as above."""
        wide = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
        each = [torch.softmax(layer, -1, dtype=wide) for layer in logits]
        sums = [p.sum(0) if weights is None else weights.to(wide) @ p for p in each]
        return torch.stack(sums).sum(0)

    def loss(self, counts: Tensor, probabilities: Tensor) -> Tensor:
        """Return the share of the step's loss, (), of the tokens that `probabilities` is over; `counts` are the step's."""
        n, rows = counts[:-1], counts[-1].to(probabilities.dtype)
        return self.coefficient * len(n) * (n / rows * probabilities).sum() / rows


def multiplicity(lengths: tuple[int, ...], parents: tuple[int, ...]) -> Tensor | None:
    """Return how many sequences have each token of the segments, (T,) int64: more than one where several continue it. None: all one."""
    if set(parents) == {-1}:
        return None
    continued = [max(1, parents.count(s)) for s in range(len(parents))]
    return torch.from_numpy(np.repeat(continued, lengths))


def check(model: Any, router: Router, ids: Tensor) -> None:
    """InputError where the model's own auxiliary loss, on one sequence `ids` (1,T), is not this one."""
    with torch.no_grad():
        outputs = model(input_ids=ids, use_cache=False)
        theirs = router.coefficient * float(outputs.aux_loss)
        ours = float(
            router.loss(router.counts(outputs.router_logits, None), router.probabilities(outputs.router_logits, None))
        )
    if not abs(ours - theirs) <= 0.01 * abs(theirs):
        raise InputError(
            f"the model's config asks for a router loss (output_router_logits) of a kind that is not known here ({theirs:.4g} by "
            f"its own code, {ours:.4g} by Switch Transformer's formula); set output_router_logits to false in its config.json."
        )


def of(config: Any) -> Router | None:
    """Return the router loss a transformers config asks for by `output_router_logits`, or None."""
    text = config.get_text_config()
    coefficient = getattr(text, "router_aux_loss_coef", None)
    if not getattr(text, "output_router_logits", False) or not coefficient:
        return None
    return Router(float(coefficient), getattr(text, "num_experts_per_tok", None) or 1)
