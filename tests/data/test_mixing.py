"""Mixing: how many examples of each set an epoch has, which, and in what order, against values derived by hand."""

import numpy as np
import pytest

from tunesmith.data.mixing import Mixing, Share, amounts, check, draw, from_easy_to_hard
from tunesmith.errors import InputError


def mixed(sizes, shares=None, tokens=None, **mixing) -> list[float]:
    return amounts(sizes, tokens or sizes, shares or [Share()] * len(sizes), Mixing(**mixing)).tolist()


def test_weights_and_caps():
    assert mixed([100, 40], [Share(weight=2.5), Share()]) == [250, 40]
    assert mixed([100, 40], [Share(weight=2.5, cap=120), Share(cap=10)]) == [120, 10]
    assert mixed([100, 0], [Share(), Share(weight=3)]) == [100, 0]


def test_temperature_by_hand():
    """sqrt(100) : sqrt(400) = 1 : 2 of 500 rows; T = 1 changes nothing; a very high one makes all sets equal."""
    assert mixed([100, 400], temperature=2) == pytest.approx([500 / 3, 1000 / 3])
    assert mixed([100, 400], temperature=1) == pytest.approx([100, 400])
    assert mixed([100, 400], temperature=1e9) == pytest.approx([250, 250])
    alpha = 0.3  # mT5's: p = n^alpha / sum n^alpha
    p = np.array([10.0, 1000, 1e6]) ** alpha
    assert mixed([10, 1000, 10**6], temperature=1 / alpha) == pytest.approx((p / p.sum() * 1_001_010).tolist())
    assert mixed([0, 100, 400], temperature=2) == pytest.approx([0, 500 / 3, 1000 / 3])


def test_a_cap_limits_what_temperature_sees_and_what_it_gives():
    """T5's limit K: sizes 4900 (of a million) and 900 are 70 : 30 of 5800. And 30 : 10 of 1000 would give the capped set 250."""
    assert mixed([10**6, 900], [Share(cap=4900), Share()], temperature=2) == pytest.approx([4060, 1740])
    assert mixed([900, 100], [Share(), Share(cap=100)], temperature=2) == pytest.approx([900, 100])
    # 100 : 10 : 20 of 10,500 would give the last 1,615: it is held to 400, the others share 10,100 as 100 : 10
    shares = [Share(), Share(), Share(cap=400)]
    assert mixed([10_000, 100, 400], shares, temperature=2) == pytest.approx([10_100 / 1.1, 1_010 / 1.1, 400])


def test_a_share_of_general_data_comes_beside_ones_own():
    """A tenth of 200 examples of one token is 20, 15 and 5 of sets of 30 and 10; the own 180 stay."""
    shares = [Share(), Share(general=True), Share(), Share(general=True)]
    assert mixed([80, 30, 100, 10], shares, general_share=0.1) == pytest.approx([80, 15, 100, 5])
    assert mixed([90, 10], [Share(), Share(general=True)], general_share=0.5) == pytest.approx([90, 90])
    assert mixed([30, 10**6], [Share(weight=3), Share(general=True)], general_share=0.25) == pytest.approx([90, 30])
    # temperature: within the own sets, 30 : 10 of 1000, and within the general ones, 2 : 1 of 1000
    shares = [Share(), Share(), Share(general=True), Share(general=True)]
    wanted = [750, 250, 2000 / 3, 1000 / 3]
    assert mixed([900, 100, 400, 100], shares, general_share=0.5, temperature=2) == pytest.approx(wanted)
    # 20 rows, 3 : 1; the first has a cap of 12, the second takes up what it leaves
    shares = [Share(), Share(general=True, cap=12), Share(general=True)]
    assert mixed([180, 30, 4], shares, general_share=0.1) == pytest.approx([180, 12, 8])


def test_the_share_is_one_of_tokens():
    """180 examples of 10 tokens ask for 200 tokens beside them, a tenth of 2000: 2.5 windows of 80 tokens of a book of 40.

    With a second general set of 60 examples of 5 tokens the two give 40 : 60, of which 3500 tokens would be all: 200 / 3500 of each.
    A cap of one window makes that 1 : 60, of 380 tokens. Ten times the own rows ask for 2000: the window, and 1920 tokens of 5.
    """
    book, sayings = Share(general=True), Share(general=True)
    assert mixed([180, 40], [Share(), book], [1800, 3200], general_share=0.1) == pytest.approx([180, 2.5])
    wanted = [180, 40 * 200 / 3500, 60 * 200 / 3500]
    sets = ([180, 40, 60], [Share(), book, sayings], [1800, 3200, 300])
    assert mixed(*sets, general_share=0.1) == pytest.approx(wanted)
    held = [Share(), Share(general=True, cap=1), sayings]
    assert mixed([180, 40, 60], held, [1800, 3200, 300], general_share=0.1) == pytest.approx(
        [180, 200 * 1 / 380, 200 * 60 / 380]
    )
    held = [Share(weight=10), Share(general=True, cap=1), sayings]
    assert mixed([180, 40, 60], held, [1800, 3200, 300], general_share=0.1) == pytest.approx([1800, 1, 1920 / 5])


def test_a_share_that_caps_do_not_allow_is_refused():
    with pytest.raises(InputError, match=r"0\.1 asks for 200 tokens of general data an epoch.* give 120 at most"):
        mixed([180, 30], [Share(), Share(general=True, cap=12)], [1800, 300], general_share=0.1)


def test_general_sets_without_rows_are_told_from_capped_ones():
    with pytest.raises(InputError, match="the sets marked general have no rows left to train on"):
        mixed([180, 0], [Share(), Share(general=True)], general_share=0.1)


def test_each_is_seen_as_often_as_any_other_in_the_long_run():
    rows = np.arange(100, 110)
    epochs = [draw(rows, 4, 0, 7, epoch) for epoch in range(5)]
    assert [len(set(e.tolist())) for e in epochs] == [4] * 5
    assert np.bincount(np.concatenate(epochs) - 100).tolist() == [2] * 10
    first, second = draw(rows, 25, 0, 7, 0), draw(rows, 25, 0, 7, 1)
    assert sorted(np.bincount(first - 100).tolist()) == [2] * 5 + [3] * 5
    assert np.bincount(np.concatenate([first, second]) - 100).tolist() == [5] * 10
    assert draw(rows, 4, 0, 7, 3).tolist() == epochs[3].tolist()  # whatever was drawn before
    assert draw(rows, 4, 0, 8, 3).tolist() != epochs[3].tolist()
    assert draw(rows, 4, 1, 7, 3).tolist() != epochs[3].tolist()
    assert len(draw(rows, 0.01, 0, 7, 0)) == 1
    assert len(draw(rows, 0, 0, 7, 0)) == len(draw(rows[:0], 5, 0, 7, 0)) == 0


def test_from_easy_to_hard_in_ten_parts_shuffled_inside():
    order = np.random.default_rng(0).permutation(20)
    difficulty = np.arange(20)[::-1] * 1.5  # example 19 is the easiest
    sorted_ = from_easy_to_hard(order, difficulty).tolist()
    for part in range(10):
        pair = [19 - 2 * part, 18 - 2 * part]
        assert sorted_[2 * part : 2 * part + 2] == sorted(pair, key=order.tolist().index)
    assert from_easy_to_hard(order, np.zeros(20)).tolist() == order.tolist()
    repeated = from_easy_to_hard(np.array([2, 0, 1, 2, 0]), np.array([3.0, 1, 2]))
    assert repeated.tolist() == [1, 2, 2, 0, 0]
    assert from_easy_to_hard(order[:0], difficulty).tolist() == []


@pytest.mark.parametrize(
    ("mixing", "shares", "words"),
    [
        ({"temperature": 2}, [Share()], "mixing.temperature mixes sets, but data names 1"),
        ({"temperature": 2}, [Share(), Share(weight=2)], "mixing.temperature and data[1].weight both say"),
        ({"general_share": 0.1}, [Share()], "needs a set of general data"),
        (
            {"general_share": 0.1},
            [Share(), Share(2, general=True)],
            "mixing.general_share and data[1].weight both say how much general data comes",
        ),
        ({"general_share": 0.1}, [Share(general=True)], "every set in data is marked general"),
        ({}, [Share(), Share(general=True)], "data[1] is marked general; say with mixing.general_share"),
        ({"curriculum": "score"}, [Share()], "mixing.curriculum: score needs mixing.score_field"),
        ({"score_field": "x"}, [Share()], "mixing.score_field belongs to mixing.curriculum: score"),
        ({"curriculum": "length", "easiest": "highest"}, [Share()], "mixing.easiest belongs to mixing.curriculum"),
    ],
)
def test_what_excludes_each_other_or_changes_nothing_is_refused(mixing, shares, words):
    with pytest.raises(InputError) as e:
        check(Mixing(**mixing), shares, "run.yaml")
    assert str(e.value).startswith("run.yaml: ")
    assert words in str(e.value)
