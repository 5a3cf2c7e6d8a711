"""What any objective over pairs can have: weights by the policy's own confidence (WPO), less of the longer answer (LD-DPO)."""

import torch
from torch import Tensor


def lengths(of_target: Tensor, answers: int) -> Tensor:
    """Return how many targets each of so many answers has, (answers,) float32. of_target (N,) int64: which answer a target is of."""
    return torch.zeros(answers, device=of_target.device).index_add_(0, of_target, torch.ones_like(of_target).float())


def confidence(logps: Tensor, log_squares: Tensor, of_target: Tensor, answers: int) -> Tensor:
    """Return how likely the policy itself is to write each answer, (answers,), without gradients; a pair counts by its two's product.

    exp(1/|y| sum_t (log p(y_t) - log sum_v p(v)^2)), the sum over the vocabulary at each position: WPO (Zhou et al., 2024, arXiv
    2406.11827, eq. 2, with its weights aligned), as in TRL's `use_weighting`. logps, log_squares (N,): of each target, in nats.
    """
    found = (logps - log_squares).detach()
    sums = found.new_zeros(answers).index_add_(0, of_target, found)
    return (sums / lengths(of_target, answers).clamp(min=1)).exp()


def desensitised(of_target: Tensor, example: Tensor, group: Tensor, alpha: float) -> Tensor:
    """Return what the log-prob of each target counts by, the policy's and the reference's alike, (N,) float32: 1, or `alpha` for
    tokens of an answer beyond the length of the shortest to its prompt.

    LD-DPO (Liu et al., 2024, arXiv 2409.06411), TRL's `ld_alpha`; with more than two answers to a prompt the shortest of all is
    meant. of_target (N,) int64; example (N,) int64: the number of the example that a target is in, where a template made several of an
    answer, ascending in it, and the targets of each in their order; group (A,) int64 below A: which prompt an answer is to.
    """
    lengths_ = lengths(of_target, len(group))
    shortest = torch.full_like(lengths_, torch.inf).scatter_reduce(0, group, lengths_, "amin")[group]
    order = torch.argsort(example, stable=True)
    order = order[torch.argsort(of_target[order], stable=True)]
    starts = (lengths_.cumsum(0) - lengths_).long()
    place = torch.empty_like(order)  # of a target in its answer, from 0
    place[order] = torch.arange(len(order), device=order.device) - starts[of_target[order]]
    return torch.where(place < shortest[of_target], 1.0, alpha)
