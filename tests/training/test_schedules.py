"""Learning-rate schedules against values worked out by hand."""

import pytest

from tunesmith.training.schedules import factor


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),  # (1 + cos(pi k / 4)) / 2
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1 / 1.2]),  # the last 20% of 6 steps are 1.2 steps: (6 - 5) / 1.2
    ],
)
def test_six_steps_two_of_warm_up(name, wanted):
    assert [factor(name, step, 6, 2) for step in range(6)] == pytest.approx(wanted)


def test_no_warm_up_starts_at_the_peak():
    assert [factor(name, 0, 10, 0) for name in ("cosine", "linear", "constant", "wsd")] == [1.0] * 4
