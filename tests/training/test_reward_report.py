"""What is told of a reward model: calibration, categories, length and ratings by hand, and the section in the report."""

import math

import numpy as np
import pytest

from tunesmith.data.records import Chat, Examples, Origin, Preference
from tunesmith.evaluation.report_reward import reward_section
from tunesmith.training import reward_report as r
from tunesmith.training.reward_rows import LABEL

HERE = Origin("x.jsonl", 1)


def said(text):
    return [{"role": "assistant", "content": text}]


def rows(answers, values=None, **constants):
    """Examples of so many answers to each prompt; their tokens do not matter."""
    n = sum(answers)
    return Examples(
        ids=np.zeros(2 * n, np.int32),
        scored=np.tile([False, True], n),
        offsets=np.arange(0, 2 * n + 1, 2),
        record=np.repeat(np.arange(len(answers)), answers),
        origins=[HERE] * len(answers),
        answer=np.concatenate([np.arange(k, dtype=np.int32) for k in answers]),
        groups=np.concatenate([[0], np.cumsum(answers)]),
        values=np.array(values if values is not None else [math.nan] * n, np.float32),
        constants={LABEL + name: np.array(value, np.float32) for name, value in constants.items()},
    )


def logit(p):
    return math.log(p / (1 - p))


def test_pairs_of_lists_with_ties():
    found = r.pairs_of(rows([2, 3], [2, 1, 3, 3, 0]))
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 1), (2, 4), (3, 4)]
    assert found.row.tolist() == [0, 1, 1]
    assert found.weight.tolist() == [1.0, 0.5, 0.5]


def test_calibration_by_hand():
    """Ten pairs of which the model is 72% sure and right in 9 (0.18 apart), ten of 97% and right in 9 (0.07): 0.125 on average."""
    margins = np.array([logit(0.72)] * 9 + [-logit(0.72)] + [logit(0.97)] * 9 + [-logit(0.97)])
    found = r.calibration(margins, r.pairs_of(rows([2] * 20)), 20)
    assert found["value"] == pytest.approx((0.18 + 0.07) / 2)
    assert found["low"] <= found["value"] <= found["high"]
    first, second = found["bins"]
    assert first == {
        "from": 0.7,
        "to": 0.75,
        "n": 10,
        "confidence": pytest.approx(0.72),
        "accuracy": pytest.approx(0.9),
    }
    assert (second["from"], second["to"], second["n"]) == (0.95, 1.0, 10)


def test_a_new_head_is_calibrated():
    """It is 50% sure of everything, and a tie is half right."""
    found = r.calibration(np.zeros(4), r.pairs_of(rows([2] * 4)), 4)
    assert found["value"] == 0
    assert found["bins"] == [{"from": 0.5, "to": 0.55, "n": 4, "confidence": 0.5, "accuracy": 0.5}]


def test_categories_from_the_least_accurate_up():
    margins = np.array([1.0] * 10 + [-2.0] * 5 + [4.0] * 5 + [9.0])
    names = ["sums"] * 10 + ["kinds"] * 10 + ["few"]
    kinds, sums = r.by_category(margins, r.pairs_of(rows([2] * 21)), names)
    assert kinds["category"] == "kinds"
    assert kinds["accuracy"]["value"] == 0.5
    assert kinds["margin"]["value"] == 1.0
    assert sums["accuracy"] == {"value": 1.0, "n": 10, "low": pytest.approx(0.722, abs=1e-3), "high": 1.0}


def test_length_is_compared_within_a_prompt():
    """Long prompts' answers score low here, but of two answers the longer one always scores higher: the correlation is 1."""
    lengths, scores = np.array([10, 20, 110, 120, 210, 220.0]), np.array([9, 10, 4, 5, 0, 1.0])
    few = r.length_bias(scores, lengths, np.array([0, 0, 1, 1, 2, 2]), np.array([10, 10, -10]))
    assert few["alarm"] is None  # three rows
    assert (
        r.length_bias(scores[:2], lengths[:2], np.array([0, 0]), np.array([10])) is None
    )  # two numbers are always on a line
    assert r.length_bias(scores[:2], lengths[:2], np.array([0, 1]), np.array([], int)) is None
    many = np.tile(scores, 4), np.tile(lengths, 4), np.repeat(np.arange(12), 2), np.tile([10, 10, -10], 4)
    found = r.length_bias(*many)
    assert found["correlation"] == pytest.approx(1.0)
    assert found["longer"] == pytest.approx(2 / 3)
    assert "longer answers have higher scores (correlation 1.00" in found["alarm"]
    assert "the data prefers the longer answer in 67% of its pairs" in found["alarm"]
    assert "add pairs whose better answer is the shorter one" in found["alarm"]
    one_each = r.length_bias(scores, lengths, np.arange(6), np.array([], int))
    assert one_each["correlation"] == pytest.approx(np.corrcoef(scores, lengths)[0, 1])
    assert one_each["longer"] is None
    assert one_each["value"] == abs(one_each["correlation"])
    assert r.length_bias(np.zeros(6), lengths, np.arange(6), np.array([], int)) is None


def test_the_alarm_is_for_more_than_a_tenth_and_more_than_chance():
    assert r.alarm(0.31, 0.2, 0.4, None) is None
    assert r.alarm(0.5, -0.1, 0.9, None) is None
    assert "explains 16%" in r.alarm(-0.4, -0.5, -0.3, None)
    assert "shorter answers have higher scores" in r.alarm(-0.4, -0.5, -0.3, None)


def test_describe_pairs_and_ratings():
    records = [
        Preference([], [said("yes indeed"), said("no")], HERE, None, None, {"category": "ab"[i % 2]}) for i in range(24)
    ]
    scores = np.zeros((48, 2))
    scores[::2, 0], scores[1::2, 1] = 2.0, 1.0  # combined: 1 and 0.5
    facts = r.describe(scores, (("a", 0.5), ("b", 0.5)), rows([2] * 24), records)
    assert facts["pairs"] == facts["rows"] == 24
    assert [c["category"] for c in facts["categories"]] == ["a", "b"]
    assert facts["categories"][0]["margin"]["value"] == pytest.approx(0.5)
    assert facts["length"]["correlation"] == pytest.approx(1.0)
    assert facts["attributes"][0] == {"name": "a", "weight": 0.5, "mean": 1.0, "deviation": 1.0}


def test_describe_ratings_of_one_answer_each():
    """Scores one above the ratings: an error of 1, a correlation of 1; two values alone are no ratings."""
    records = [Chat([*said("x" * i)], [True], HERE) for i in range(1, 7)]
    ratings = [0, 1, 2, 3, 4, math.nan]
    scores = np.array([[1.0, 0], [2, 0], [3, 0], [4, 0], [5, 0], [0, 0]])
    facts = r.describe(scores, (("a", 1.0), ("b", 1.0)), rows([1] * 6, None, a=ratings, b=[0, 1, 0, 1, 0, 1]), records)
    assert "calibration" not in facts
    first, second = facts["attributes"]
    assert first["rating_error"]["value"] == pytest.approx(1.0)
    assert first["rating_correlation"]["value"] == pytest.approx(1.0)
    assert first["rating_correlation"]["n"] == 5
    assert "rating_error" not in second


def test_the_section_of_the_report():
    margins = [logit(0.72)] * 9 + [-logit(0.72)]
    length = r.length_bias(np.tile([0, 1.0], 10), np.tile([1, 5.0], 10), np.repeat(np.arange(10), 2), np.full(10, -4))
    facts = {
        "calibration": r.calibration(np.array(margins), r.pairs_of(rows([2] * 10)), 10),
        "length": length,
        "attributes": [{"name": "<b>", "weight": 0.5, "mean": 1.0, "deviation": 2.0}],
    }
    html = reward_section(facts)
    assert "70–75%" in html
    assert "&lt;b&gt;" in html
    assert html.startswith('<p class="lead worse">The reward model scores length: longer answers')
    assert reward_section(None) == reward_section({}) == ""
