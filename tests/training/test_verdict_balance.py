"""What good and bad verdicts count: inferred where their numbers differ, left alone where somebody said."""

from types import SimpleNamespace

import numpy as np
import pytest

from tunesmith.config import parse
from tunesmith.training import balance
from tunesmith.training.objectives import bco, kto


def inferred(module, good, bad, **stated):
    config = parse({"data": "rows.jsonl", "objective": {"name": module.__name__.rsplit(".", 1)[-1], **stated}})
    found, said = balance.infer_weights(config, module, good, bad)
    return {item.key: item.value for item in found}, said, [item.reason for item in found]


@pytest.mark.parametrize(
    ("good", "bad", "wanted"),
    [
        (100, 100, {}),
        (4, 3, {}),
        (100, 1000, {"objective.desirable_weight": 10.0}),  # 10 x 100 / 1000 = 1
        (2000, 1000, {"objective.undesirable_weight": 1.5}),  # 2000 / (1.5 x 1000) = 4/3
        (3, 7, {"objective.desirable_weight": 2.334}),
    ],
)
def test_kto_goes_to_the_nearer_end_of_its_range(good, bad, wanted):
    found, said, _ = inferred(kto, good, bad)
    assert found == wanted
    assert not said


def test_bco_counts_both_labels_the_same():
    assert inferred(bco, 4, 3)[0] == {"objective.undesirable_weight": 1.334}
    assert inferred(bco, 3, 3)[0] == {}


def test_the_reason_says_the_numbers():
    *_, (why,) = inferred(kto, 100, 1000)
    assert (
        why
        == "100 good and 1,000 bad answers an epoch: the good ones together should count 1 to 1.33 times the bad ones"
    )


def test_a_stated_weight_is_left_alone_and_what_it_comes_to_is_said():
    found, said, _ = inferred(kto, 100, 1000, desirable_weight=2.0)
    assert found == {}
    assert said == [
        "with 100 good and 1,000 bad answers the good ones count 0.20 times what the bad ones do; for kto 1 to 1.33 is advised"
    ]
    assert inferred(kto, 100, 1000, desirable_weight=10.0)[:2] == ({}, [])
    assert inferred(kto, 100, 1000, undesirable_weight=0)[1]


def test_rows_are_counted_by_their_own_answer():
    """Each row's first example is its answer, the second a mismatched one, which has no verdict."""
    values = np.array([1, np.nan, 0, np.nan, 1, np.nan], dtype=np.float32)
    examples = SimpleNamespace(values=values, groups=np.array([0, 2, 4, 6]))
    assert balance.counted(examples, np.array([0, 1, 2, 2])) == (3, 1)
