"""How sure a measured number is: 95% intervals. Seeded, so the same scores always give the same interval."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
_CHUNK = 4_000_000  # resampled items held at once
_Z = 1.959963984540054  # the normal distribution's 97.5% point


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the Wilson score interval (1927) of a proportion: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Stays inside [0, 1] and is honest where the proportion is 0 or 1, which resampling is not.
    """
    p, z2 = successes / n, _Z * _Z
    center = p + z2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    low = 0.0 if successes == 0 else (center - half) / scale  # exactly so, but for rounding
    high = 1.0 if successes == n else (center + half) / scale
    return low, high


def bootstrap_ratios(numerators: Floats, denominators: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Return sum(numerators) / sum(denominators) of `resamples` draws of n items with replacement, (resamples,).

    With denominators of one it is the mean. Items are drawn whole, numerator with denominator.
    """
    n = len(numerators)
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, n, size=(min(step, resamples - start), n))
        out[start : start + step] = numerators[drawn].sum(1) / denominators[drawn].sum(1)
    return out


def percentile_interval(resampled: Floats) -> tuple[float, float]:
    """Return the 2.5% and 97.5% percentiles."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Floats, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the mean: Wilson's where all values are 0 or 1, else the bootstrap's."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    return percentile_interval(bootstrap_ratios(values, np.ones(len(values)), seed))


def mean_of_means_interval(groups: list[Floats], seed: int = 0) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of the groups' means, each group resampled within itself."""
    means = [bootstrap_ratios(g, np.ones(len(g)), seed + i) for i, g in enumerate(groups)]
    return percentile_interval(np.mean(means, axis=0))
