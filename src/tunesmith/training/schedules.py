"""Learning-rate schedules by name: the share of the peak rate at each step after the warm-up.

Each takes done, the share of the steps after the warm-up that are over, and step, steps and warmup as `factor` does.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from tunesmith.arguments import arguments
from tunesmith.errors import InputError, did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def constant(done: float, step: int, steps: int, warmup: int) -> float:
    """Stay at 1."""
    return 1.0


def cosine(done: float, step: int, steps: int, warmup: int, *, min_ratio: Share = 0.0) -> float:
    """Fall to min_ratio along half a cosine (Loshchilov & Hutter, 2017, arXiv 1608.03983)."""
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float, step: int, steps: int, warmup: int, *, min_ratio: Share = 0.0) -> float:
    """Fall to min_ratio on a line."""
    return min_ratio + (1 - min_ratio) * (1 - done)


def polynomial(
    done: float, step: int, steps: int, warmup: int, *, power: Positive = 1.0, min_ratio: Share = 0.0
) -> float:
    """Fall to min_ratio as what is left of the run to the `power`."""
    return float(min_ratio + (1 - min_ratio) * (1 - done) ** power)


def inverse_sqrt(done: float, step: int, steps: int, warmup: int, *, timescale: Positive | None = None) -> float:
    """Fall as 1 / sqrt(1 + t / timescale), t steps after the warm-up (Zhai et al., 2022, arXiv 2106.04560).

    timescale: the warm-up, or 10,000 steps without, where it is not given; with the warm-up it is Vaswani et al.'s (2017) 1 / sqrt(step).
    """
    scale = timescale or warmup or 10_000
    return math.sqrt(scale / (scale + step - warmup))


def wsd(
    done: float,
    step: int,
    steps: int,
    warmup: int,
    *,
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2,
    min_ratio: Share = 0.0,
) -> float:
    """Stay at 1, then fall to min_ratio on a line over the last `decay` of the run (Hu et al., 2024, arXiv 2404.06395)."""
    left = min(1.0, (steps - step) / max(1.0, decay * steps))
    return min_ratio + (1 - min_ratio) * left


TABLE: dict[str, Callable[..., float]] = {
    f.__name__: f for f in (constant, cosine, inverse_sqrt, linear, polynomial, wsd)
}
ELSEWHERE = {
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "warmup_stable_decay": "wsd",
    "none": "constant",
}
"""What other tools call them."""


def factor(schedule: str | Mapping[str, Any], step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak learning rate for step `step` (0-based) of `steps`.

    schedule: a name, or {name, its keyword arguments}. The first `warmup` steps rise linearly to 1 (step 0 gets 1/warmup).
    """
    if step < warmup:
        return (step + 1) / warmup
    options = {} if isinstance(schedule, str) else {k: v for k, v in schedule.items() if k != "name"}
    done = (step - warmup) / max(1, steps - warmup)
    return TABLE[name_of(schedule)](done, step, steps, warmup, **options)


def name_of(schedule: str | Mapping[str, Any]) -> str:
    """Return the name of a schedule that has been checked."""
    return schedule if isinstance(schedule, str) else str(schedule["name"])


def checked(schedule: str | Mapping[str, Any], where: str) -> str | dict[str, Any]:
    """Return the schedule with its arguments converted, a name alone where there are none; InputError for what is wrong with it."""
    given = {"name": schedule} if isinstance(schedule, str) else dict(schedule)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{where} needs a name, one of {', '.join(TABLE)}.")
    if name not in TABLE:
        near = f' Did you mean "{ELSEWHERE[name]}"?' if name in ELSEWHERE else did_you_mean(name, TABLE)
        raise InputError(f'{where}: there is no schedule "{name}".{near}')
    found = arguments(TABLE[name], given, where, ("done", "step", "steps", "warmup"))
    return {"name": name, **found} if found else name
