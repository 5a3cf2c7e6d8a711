"""Every rule's scores by hand, and the sentences for rules that are wrong."""

import pytest

from tunesmith.errors import InputError
from tunesmith.evaluation.rules import RULES, check

CASES = [
    ("  The ball\nis here. ", {"rule": "exact", "answers": ["x", "The ball is here."]}, 1),
    ("the ball is here.", {"rule": "exact", "answers": ["The ball is here."]}, 0),
    ("the BALL is, here", {"rule": "same_words", "answers": ["The ball is here."]}, 1),
    ("here is the ball", {"rule": "same_words", "answers": ["The ball is here."]}, 0),
    ("A red hat.", {"rule": "contains", "texts": ["Red hat", "green"]}, 0.5),
    ("A redder hat.", {"rule": "contains", "texts": ["red"]}, 0),  # whole words only
    ("", {"rule": "contains", "texts": []}, 1),
    ("Fine, thanks.", {"rule": "excludes", "texts": ["bad"]}, 1),
    ("Bad!", {"rule": "excludes", "texts": ["good", "bad"]}, 0),
    ("In the hall! \n", {"rule": "ends_with", "texts": ["!", "?"]}, 1),
    ("In the hall!.", {"rule": "ends_with", "texts": ["!", "?"]}, 0),
    ("3 and 4 make 7.", {"rule": "number", "value": 7}, 1),
    ("It is 1,250.50 in all", {"rule": "number", "value": 1250.5}, 1),
    ("minus -2", {"rule": "number", "value": 2}, 0),
    ("no number", {"rule": "number", "value": 0}, 0),
    ('{"b": [1, {"c": null}], "a": 2.0}', {"rule": "json_equal", "value": {"a": 2, "b": [1, {"c": None}]}}, 1),
    ('{"a": true}', {"rule": "json_equal", "value": {"a": 1}}, 0),
    ('{"a": 1} and more', {"rule": "json_equal", "value": {"a": 1}}, 0),
    ("[" * 100_000, {"rule": "json_equal", "value": []}, 0),  # deeper than the parser goes
    (
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
        {"rule": "tool_call", "name": "f", "arguments": {"x": 1}},
        1,
    ),
    ('{"name": "f", "arguments": "{\\"x\\": 1}"}', {"rule": "tool_call", "name": "f", "arguments": {"x": 1}}, 1),
    ('{"name": "g", "arguments": {"x": 1}}', {"rule": "tool_call", "name": "f", "arguments": {"x": 1}}, 0),
    ('{"name": "f", "arguments": {"x": 2}}', {"rule": "tool_call", "name": "f", "arguments": {"x": 1}}, 0),
    ('Sure: {"name": "f", "arguments": {}}', {"rule": "tool_call", "name": "f", "arguments": {}}, 0),
    ("[1]", {"rule": "tool_call", "name": "f", "arguments": {}}, 0),
    ("The well-known dog's 2 bones.", {"rule": "n_words", "n": 5}, 1),
    ("one two", {"rule": "n_words", "n": 3}, 0),
    ("one two", {"rule": "max_words", "n": 2}, 1),
    ("", {"rule": "max_words", "n": 2}, 0),
    ("Cat, dog.", {"rule": "items", "n": 2, "of": ["dog", "cat", "cow"]}, 1),
    ("cat, cat", {"rule": "items", "n": 2}, 0),
    ("cat, pear", {"rule": "items", "n": 2, "of": ["dog", "cat"]}, 0),
    ("- cat\n2. dog", {"rule": "items", "n": 2, "separator": "\n"}, 1),
    ("cat,", {"rule": "items", "n": 2}, 0),
    (
        "one two",
        {"rule": "all_of", "rules": [{"rule": "n_words", "n": 2}, {"rule": "contains", "texts": ["two", "six"]}]},
        0.5,
    ),
    ("", {"rule": "all_of", "rules": []}, 1),
]


@pytest.mark.parametrize(("answer", "rule", "score"), CASES)
def test_scores(answer, rule, score):
    assert check(answer, rule) == score


def test_every_rule_has_a_case_of_each_outcome():
    for name in RULES:
        outcomes = {score for _, rule, score in CASES if rule["rule"] == name}
        assert 1 in outcomes, name
        assert outcomes - {1}, name


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"rule": "exakt", "answers": ["a"]}, ["exakt", 'Did you mean "exact"?']),
        ({"rule": "exact", "answer": "a"}, ["exact", "answer", 'Did you mean "answers"?']),
        ({"rule": "max_words"}, ["max_words", '"n"', "not given"]),
        ({"rule": "max_words", "n": "3"}, ["max_words", "a whole number", "'3'"]),
        ({"rule": "max_words", "n": True}, ["a whole number"]),
        ({"rule": "exact", "answers": "a"}, ["a list of texts", "'a'"]),
        ({"rule": "items", "n": 2, "of": "ab"}, ["a list of texts"]),
        ({"rule": "number", "value": "7"}, ["a number"]),
        ({"rule": "tool_call", "name": "f", "arguments": []}, ["an object"]),
        ({"rule": "all_of", "rules": [{"rule": "nwords", "n": 1}]}, ["nwords", 'Did you mean "n_words"?']),
        ({"answers": ["a"]}, ["a check is an object"]),
        (["exact"], ["a check is an object"]),
    ],
)
def test_wrong_rules_are_named(rule, words):
    with pytest.raises(InputError) as e:
        check("anything", rule)
    for word in words:
        assert word in str(e.value)
