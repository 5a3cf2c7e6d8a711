"""What scores say of a reward, against values by hand and brute force."""

import itertools

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Preference, Verdict
from tunesmith.rewarding.score_metrics import Scored, measure


def answer(text="x"):
    return [{"role": "assistant", "content": text}]


def preference(scores, lengths=None, values=None, category=None):
    extra = {} if category is None else {"category": category}
    record = Preference([], [answer() for _ in scores], Origin("f", 1), values, extra=extra)
    return scored(record, scores, lengths)


def verdict(score, good):
    return scored(Verdict([], answer(), good, Origin("f", 1)), [score])


def scored(record, scores, lengths=None):
    scores = np.array(scores, dtype=float)
    return Scored(
        record, scores, np.ones(len(scores)) if lengths is None else np.array(lengths, float), scores[:, None]
    )


def test_accuracy_and_margin_by_hand():
    rows = [preference([2, 1], category="a"), preference([0, 3], category="a"), preference([1, 1], category="b")]
    found, _ = measure(rows, ["reward"])
    assert found["preference_accuracy"]["value"] == pytest.approx(1 / 2)  # a tie is half right
    assert found["reward_margin"]["value"] == pytest.approx((1 - 3 + 0) / 3)
    assert found["preference_accuracy/a"]["value"] == 0.5
    assert found["reward_margin/b"] == {"value": 0.0, "n": 1, "low": 0.0, "high": 0.0}
    assert found["score"] == found["score"] | {"value": pytest.approx(8 / 6), "n": 6}
    assert "verdict_auc" not in found


def test_a_list_counts_as_one_row_and_ties_of_the_data_not_at_all():
    """Of three answers worth 5, 3, 3 two pairs are told; scores 1, 2, 0 have one right, and lead by -1 and 1."""
    found, _ = measure([preference([1, 2, 0], values=[5.0, 3.0, 3.0])], ["reward"])
    assert found["preference_accuracy"]["value"] == 0.5
    assert found["reward_margin"]["value"] == pytest.approx(0.0)
    assert found["preference_accuracy"]["n"] == 1
    assert "preference_accuracy" not in measure([preference([1, 2], values=[3.0, 3.0])], ["reward"])[0]


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    good, bad = rng.integers(0, 6, 12) + 1, rng.integers(0, 6, 9)
    wanted = np.mean([(g > b) + 0.5 * (g == b) for g, b in itertools.product(good, bad)])
    found = measure([verdict(g, True) for g in good] + [verdict(b, False) for b in bad], ["reward"])[0]["verdict_auc"]
    assert found["value"] == pytest.approx(wanted)
    assert found["low"] < wanted < found["high"]
    assert found["n"] == 21
    assert "verdict_auc" not in measure([verdict(1.0, True)], ["reward"])[0]


def test_calibration_by_hand():
    """Both pairs are believed with sigmoid(2) = 88%; one of them is ranked right."""
    found, _ = measure([preference([2, 0]), preference([0, 2])], ["reward"])
    assert found["calibration_error"]["value"] == pytest.approx(1 / (1 + np.exp(-2)) - 0.5)
    assert found["calibration_error"]["n"] == 2


def test_length_is_told_and_alarms():
    rng = np.random.default_rng(0)
    long = rng.integers(2, 50, (80, 2))
    told, alarm = measure([preference(own, lengths=own) for own in long], ["reward"])
    assert told["length_bias"]["value"] == pytest.approx(1.0)
    assert "longer answers have higher scores" in alarm
    told, alarm = measure([preference(rng.normal(size=2), lengths=own) for own in long], ["reward"])
    assert told["length_bias"]["value"] < 0.3
    assert alarm is None
    assert "length_bias" not in measure([preference([1, 2])], ["reward"])[0]  # all of one length


def test_heads_have_scores_of_their_own():
    row = preference([2.0, 0.0])
    row = Scored(row.record, row.scores, row.lengths, np.array([[1.0, 3.0], [0.0, 1.0]]))
    row.record.extra["category"] = "helpful"  # of a head's name
    found, _ = measure([row], ["helpful", "harmless"])
    assert found["score_helpful"]["value"] == 0.5
    assert found["score/helpful"]["value"] == 1.0
    assert found["score_harmless"]["value"] == 2.0


def test_a_chat_has_a_score_alone():
    chat = Chat([{"role": "user", "content": "q"}, *answer()], [False, True], Origin("f", 1))
    assert list(measure([scored(chat, [0.5])], ["reward"])[0]) == ["score"]
    _, alarm = measure([scored(chat, [i], [i]) for i in range(40)], ["reward"])
    assert "longer answers have higher scores" in alarm
