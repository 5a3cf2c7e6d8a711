"""Recall and precision on the held-out part of the labelled set; its templates are none of the tuning part's."""

import labelled as l
import labelled_templates as t
import pytest

from tunesmith.data.personal import find


def test_the_parts_share_nothing():
    assert not set(t.HELD_OUT) & set(t.TUNING)
    assert not set(t.HELD_OUT_NEAR) & set(t.TUNING_NEAR)
    personal = {m[2] for line in t.HELD_OUT for m in l._SLOT.finditer(line)}
    assert set(l.VALUES) <= personal


def test_the_measure_by_hand():
    rows = [("ab", [("x", 0, 1)]), ("cd", [("x", 0, 1), ("y", 1, 2)]), ("e", [])]
    finds = {"ab": [("x", 0, 1)], "cd": [("x", 0, 2)], "e": [("y", 0, 1)]}
    counts = l.measure(finds.__getitem__, rows)
    assert counts == {"x": (1, 1, 1), "y": (0, 1, 1)}
    assert l.overall(counts) == (1 / 3, 1 / 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_and_precision_held_out(seed):
    counts = l.measure(find, l.labelled(True, seed=seed))
    recall, precision = l.overall(counts)
    assert recall >= 0.95, counts
    assert precision >= 0.97, counts
    assert all(right / (right + missed) >= 0.8 for right, missed, _ in counts.values() if right + missed), counts


def test_nothing_is_missed_in_the_part_the_patterns_were_written_on():
    assert l.overall(l.measure(find, l.labelled(False))) == (1.0, 1.0)
