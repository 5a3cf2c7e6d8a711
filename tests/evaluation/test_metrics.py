"""Each metric by hand."""

import math

import numpy as np
import pytest

from tunesmith import registry
from tunesmith.data.records import Chat, Origin
from tunesmith.errors import InputError
from tunesmith.evaluation.evaluator import check_metrics
from tunesmith.evaluation.items import Item
from tunesmith.evaluation.metrics import exact_match, perplexity, rule
from tunesmith.evaluation.statistics import wilson


def item(answer="", reference=None, **extra):
    return Item(Chat([], [], Origin("f.jsonl", 1), extra=extra), [], reference, answer)


def test_every_metric_keeps_the_contract():
    for name in registry.names("evaluation.metrics"):
        module = registry.load("evaluation.metrics", name)
        assert module.NEEDS in ("logps", "answers")
        result = module.aggregate(np.array([1.0, 0.0, 1.0]), np.ones(3))
        assert list(result) == ["value", "n", "low", "high"]
        assert result["n"] == 3
        assert result["low"] <= result["value"] <= result["high"]


def test_perplexity_weighs_tokens():
    """3 tokens of 1/2 and 1 token of 1/8: (3 ln 2 + 3 ln 2) / 4, so 2^1.5; a mean over rows would say 4."""
    rows = [
        Item(item().record, nll=3 * math.log(2), tokens=3),
        Item(item().record, nll=math.log(8), tokens=1),
        Item(item().record),
    ]
    scores = np.array([s for row in rows if (s := perplexity.score(row)) is not None])
    assert len(scores) == 2
    found = perplexity.aggregate(scores[:, 0], scores[:, 1])
    assert found["value"] == pytest.approx(2**1.5)
    assert (found["low"], found["high"]) == pytest.approx((2.0, 8.0))  # two rows: all draws of one or the other occur
    assert perplexity.aggregate(np.array([1e9]), np.ones(1))["value"] < math.inf


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("Paris", "Paris", 1),
        ("  Paris\n", "Paris", 1),
        ("a\n\n b", "a b", 1),
        ("paris", "Paris", 0),
        ("Paris.", "Paris", 0),
        ("<think>\nhm\n</think>\n\nParis", "Paris", 1),
        ("so <think>x</think> Paris", "Paris", 0),
        ("", "Paris", 0),
    ],
)
def test_exact_match(answer, reference, score):
    assert exact_match.score(item(answer, reference)) == (score, 1)


def test_exact_match_options_and_missing_references():
    assert exact_match.score(item("paris", "Paris"), ignore_case=True) == (1, 1)
    assert exact_match.score(item("x")) is None
    found = exact_match.aggregate(np.array([1.0] * 8 + [0.0] * 2), np.ones(10))
    assert found == {"value": 0.8, "n": 10, "low": wilson(8, 10)[0], "high": wilson(8, 10)[1]}


def test_rule_reads_the_rows_check_else_matches():
    check = {"rule": "contains", "texts": ["kitchen", "ball"]}
    assert rule.score(item("<think>ball</think> It is in the kitchen.", check=check)) == (0.5, 1)
    assert rule.score(item("yes", "yes")) == (1, 1)
    assert rule.score(item("yes")) is None


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ([{"name": "exact_mach"}], 'there is no metric "exact_mach".*"exact_match"'),
        ([{"name": "perplexity"}, {"name": "exact_match", "ignore_cas": True}], "metric 2.*ignore_cas"),
        ([{"name": "exact_match", "ignore_case": "often"}], "metric 1.*ignore_case"),
        ([{}], "metric 1 needs a name"),
    ],
)
def test_wrong_metrics_are_named(metrics, sentence):
    with pytest.raises(InputError, match=sentence):
        check_metrics(metrics)
