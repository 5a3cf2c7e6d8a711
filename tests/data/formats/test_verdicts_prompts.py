"""Verdicts and prompts with references, however they are spelt."""

import pytest

from tunesmith.data.detect import best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.formats.verdict import judged
from tunesmith.data.records import Origin, Prompt, Verdict

ORIGIN = Origin("data.jsonl", 7)


def read(row):
    (record,) = convert(row, ORIGIN, best_match(row)[0])
    return record


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "value",
    [True, 1, 1.0, "1", "+1", "true", "Good", " thumbs up ", "thumbs_up", "👍", "👍🏽", "thumbsUp", "desirable"],
)
def test_good(value):
    assert judged(value) is True


@pytest.mark.parametrize(
    "value", [False, 0, 0.0, -1, "0", "-1", "False", "bad", "Thumbs Down", "👎", "undesirable", "rejected"]
)
def test_bad(value):
    assert judged(value) is False


@pytest.mark.parametrize("value", [None, 2, 0.5, "", "sports", "4", "5 stars", [1], {"a": 1}, float("nan")])
def test_no_verdict(value):
    assert judged(value) is None


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "x", "label": True},
        {"prompt": [u("q")], "completion": [a("x")], "label": True},
        {"question": "q", "answer": "x", "thumbs": "up"},
        {"instruction": "q", "input": "", "output": "x", "kto_tag": "true"},
        {"messages": [u("q"), a("x")], "label": 1},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}], "kto_tag": True},
        {"prompt": "q", "response": "x", "rating": "good"},
        {"prompt": "q", "messages": [u("q"), a("x")], "label": True},
    ],
)
def test_one_verdict_in_many_shapes(row):
    assert read(row) == Verdict([u("q")], [a("x")], True, ORIGIN)


def test_of_a_conversation_the_last_answer_is_judged():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    tool = {"role": "tool", "content": "1"}
    record = read(
        {"messages": [u("p"), a("x"), u("q"), call, tool, a("y")], "label": False, "system": "s", "lang": "en"}
    )
    assert record.prompt == [{"role": "system", "content": "s"}, u("p"), a("x"), u("q")]
    assert record.answer == [call, tool, a("y")]
    assert (record.good, record.extra) == (False, {"lang": "en"})


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "q"}, None),
        ({"prompt": [u("q")], "ground_truth": "8"}, "8"),
        ({"messages": [u("q")], "ground_truth": "8"}, "8"),
        ({"conversations": [{"from": "human", "value": "q"}], "solution": "8"}, "8"),
        ({"question": "q", "reference": 8}, "8"),
        ({"problem": "q", "solution": "8"}, "8"),
        ({"problem": "q", "answer": "8"}, "8"),
        ({"instruction": "q", "expected_answer": {"x": 1}}, '{"x": 1}'),
    ],
)
def test_prompts(row, reference):
    assert read(row) == Prompt([u("q")], ORIGIN, reference)


def test_a_reference_inside_the_rule_that_checks_it():
    rule = {"style": "rule", "ground_truth": "8"}
    assert read({"prompt": [u("q")], "reward_model": rule}) == Prompt(
        [u("q")], ORIGIN, "8", extra={"reward_model": rule}
    )


def test_of_several_references_the_first_is_taken_and_all_are_kept():
    record = read({"prompt": "q", "reference": ["a", "b"]})
    assert (record.reference, record.extra) == ("a", {"reference": ["a", "b"]})
    assert read({"prompt": "q", "reference": []}).reference is None


def test_several_turns_ask_the_first_and_keep_all():
    record = read({"question_id": 81, "turns": ["q", "r"], "reference": ["a", "b"]})
    assert record.prompt == [u("q")]
    assert record.reference == "a"
    assert record.extra == {"question_id": 81, "turns": ["q", "r"], "reference": ["a", "b"]}


def test_a_conversation_with_its_answer_is_no_prompt():
    assert best_match({"messages": [u("q"), a("x")], "ground_truth": "8"})[0] == "messages"
    assert best_match({"prompt": "q", "completion": "x", "ground_truth": "8"})[0] == "prompt_completion"
    assert best_match({"prompt": "q", "text": "story"})[0] == "text"


@pytest.mark.parametrize(
    ("name", "row", "field", "kind", "sentence"),
    [
        ("verdict", {"prompt": "q", "completion": "x"}, "label", "missing_field", 'field "label" is missing'),
        ("verdict", {"prompt": "q", "completion": "x", "label": "goood"}, "label", "wrong_type", '("goood"), expected a verdict'),
        ("verdict", {"prompt": "q", "label": 1}, "completion", "missing_field", "missing"),
        ("verdict", {"messages": [u("q")], "label": 1}, "messages", "no_answer", "ends with the user's turn"),
        ("verdict", {"messages": [a("q")], "label": 1}, "messages", "no_prompt", "no turn of the user"),
        ("verdict", {"prompt": "q", "completion": [u("x")], "label": 1}, "completion", "bad_value", "the answer alone"),
        ("prompt", {"reference": "x"}, "prompt", "missing_field", 'field "prompt" is missing'),
        ("prompt", {"prompt": None, "reference": "x"}, "prompt", "null_field", "null"),
        ("prompt", {"prompt": 5}, "prompt", "wrong_type", "expected a string or a list of messages"),
        ("prompt", {"turns": [5]}, "turns", "wrong_type", "a list of strings"),
    ],
)  # fmt: skip
def test_mistakes(refuses, name, row, field, kind, sentence):
    refuses(name, row, field, kind, sentence)


def test_a_misspelt_verdict_in_a_file_of_verdicts_is_named():
    with pytest.raises(RowError, match="expected a verdict"):
        convert({"prompt": "q", "completion": "x", "label": "goood"}, ORIGIN, "verdict")
