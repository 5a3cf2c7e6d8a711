"""Learning-rate schedules: the share of the peak rate at each step."""

import math


def factor(name: str, step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak learning rate for step `step` (0-based) of `steps`.

    The first `warmup` steps rise linearly to 1 (step 0 gets 1/warmup); after them cosine and linear fall to 0 at `steps`, constant
    stays, wsd (warm-up, stable, decay: Hu et al., 2024, arXiv 2404.06395) stays for 80% of the run and falls linearly over the last 20%.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if name == "linear":
        return 1 - done
    if name == "wsd":
        return min(1.0, (steps - step) / max(1.0, 0.2 * steps))
    return 1.0
