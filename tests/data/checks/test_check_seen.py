"""Where a key was first seen, against a dictionary, over batches of any size."""

import numpy as np
import pytest

from tunesmith.data.checks.seen import Seen


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_the_first_place_of_every_key(batch):
    rng = np.random.default_rng(batch)
    keys = rng.integers(-50, 50, 1000) * 2**40
    seen, first = Seen(), {}
    for start in range(0, len(keys), batch):
        part = keys[start : start + batch]
        got = seen.earlier(part, np.arange(start, start + len(part)))
        for at, key, place in zip(range(start, start + len(part)), part.tolist(), got.tolist(), strict=True):
            assert place == first.get(key, -1)
            first.setdefault(key, at)


def test_few_levels_hold_many_keys():
    seen = Seen()
    for start in range(0, 64_000, 1000):
        seen.earlier(np.arange(start, start + 1000) * 7919, np.arange(start, start + 1000))
    assert len(seen._levels) <= 8
    assert sum(len(keys) for keys, _ in seen._levels) == 64_000
