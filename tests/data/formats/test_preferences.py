"""Preferences in every shape: pairs with and without a prompt, lists with ranks or scores; what is wrong is named."""

import pytest

from tunesmith.data.detect import best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin, Preference

ORIGIN = Origin("data.jsonl", 7)


def read(row):
    (record,) = convert(row, ORIGIN, best_match(row)[0])
    assert isinstance(record, Preference)
    return record


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\nReally?\n\nAssistant:"
CONVERSATION = [u("Hi"), a("Hello"), u("Why?\nReally?")]
PLAIN = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"question": "q", "response_j": "good", "response_k": "bad"},
        {"instruction": "q", "output": "good", "rejected": "bad"},
        {"instruction": "q", "input": "", "chosen_response": "good", "rejected_response": "bad"},
        {"prompt": [u("q")], "chosen": [a("good")], "rejected": [a("bad")]},
        {"prompt": "q", "chosen": a("good"), "rejected": gpt("bad")},
        {"prompt": "q", "chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")]},
        {"chosen": [u("q"), a("good")], "rejected": [u("q"), a("bad")]},
        {"chosen": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]', "rejected": [u("q"), a("bad")]},
        {"conversations": [human("q")], "chosen": gpt("good"), "rejected": gpt("bad")},
        {"messages": [u("q")], "chosen": "good", "rejected": "bad"},
        {"input": {"messages": [u("q")], "tools": []}, "preferred_output": [a("good")], "non_preferred_output": [a("bad")]},
        {"chosen": "q good", "rejected": "q bad"},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {"prompt": "q", "ranked_answers": ["good", "bad"]},
    ],
)  # fmt: skip
def test_one_pair_in_many_shapes(row):
    assert read(row) == Preference([u("q")], [[a("good")], [a("bad")]], ORIGIN)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HH, "chosen": " yes", "rejected": " no"},
        {"chosen": HH + " yes", "rejected": HH + " no"},
        {"chosen": [*CONVERSATION, a("yes")], "rejected": [*CONVERSATION, a("no")]},
        {
            "conversations": [human("Hi"), gpt("Hello"), human("Why?\nReally?")],
            "chosen": gpt("yes"),
            "rejected": gpt("no"),
        },
    ],
)
def test_the_prompt_may_be_a_conversation(row):
    record = read(row)
    assert record.prompt == CONVERSATION
    assert [m["content"].strip() for m in record.chosen + record.rejected] == ["yes", "no"]


def test_v1_parts_of_conversations_with_a_common_beginning():
    def v1(role, text, weight):
        return {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}

    before = [v1("system", "s", 0.0), v1("user", "q", 0.0)]
    row = {
        "chosen_messages": [*before, v1("assistant", "yes", 1.0)],
        "rejected_messages": [*before, v1("assistant", "no", 1.0)],
    }
    assert read(row) == Preference([{"role": "system", "content": "s"}, u("q")], [[a("yes")], [a("no")]], ORIGIN)


def test_the_common_beginning_ends_where_the_assistant_speaks():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    tool = {"role": "tool", "content": "1"}
    record = read(
        {"chosen": [u("q"), call, tool, a("x")], "rejected": [u("q"), call, {**tool, "content": "2"}, a("y")]}
    )
    assert record.prompt == [u("q")]  # the answers begin with a call, not with what the tool said
    assert record.chosen == [call, tool, a("x")]
    same = [u("q"), a("same")]
    assert read({"chosen": same, "rejected": same}).answers == [[a("same")], [a("same")]]


def test_implicit_prompts_of_plain_text_end_with_a_whole_word():
    record = read({"chosen": "The sky is blue.", "rejected": "The sky is blank."})
    assert (record.prompt, record.answers) == ([u("The sky is")], [[a("blue.")], [a("blank.")]])


def test_alpaca_with_both_keeps_the_output_beside():
    row = {"instruction": "i", "input": "n", "output": "o", "rejected": "bad", "chosen": "good", "id": 3}
    record = read(row)
    assert record.prompt == [u("i\n\nn")]
    assert record.extra == {"output": "o", "id": 3}


def test_system_tools_and_history():
    tools = [{"type": "function", "function": {"name": "f"}}]
    record = read({**PLAIN, "system": "s", "history": [["x", "y"]], "tools": tools})
    assert record.prompt == [{"role": "system", "content": "s"}, u("x"), a("y"), u("q")]
    assert (record.tools, record.extra) == (tools, {})


def test_a_system_prompt_beside_whole_conversations_is_kept():
    record = read({"system": "s", "prompt": "q", "chosen": [u("q"), a("x")], "rejected": [u("q"), a("y")]})
    assert record.prompt == [{"role": "system", "content": "s"}, u("q")]


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")])
def test_scores_of_a_pair(names):
    record = read({**PLAIN, **dict(zip(names, (4, "2.5"), strict=True))})
    assert (record.scores, record.extra) == ([4.0, 2.5], {})


def test_lists_are_sorted_best_first_and_ties_keep_their_order():
    answers = {"prompt": "q", "responses": ["a", "b", "c", "d"]}
    for order in ({"scores": [1, 3, 3, 2]}, {"ranks": [-1, -3, -3, -2]}, {"rewards": "[1, 3, 3, 2]"}):
        record = read({**answers, **order})
        assert [x[0]["content"] for x in record.answers] == ["b", "c", "d", "a"]
        assert record.scores == [3.0, 3.0, 2.0, 1.0]
    assert read({**answers, "rankings": [2, 1, 4, 3]}).scores == [-1.0, -2.0, -3.0, -4.0]


def test_answers_that_carry_their_scores():
    row = {"instruction": "q", "completions": [
        {"response": "a", "overall_score": 2.0, "model": "m"}, {"response": "b", "overall_score": 4.5, "model": "n"}]}  # fmt: skip
    assert read(row) == Preference([u("q")], [[a("b")], [a("a")]], ORIGIN, [4.5, 2.0])
    row = {"prompt": "q", "answers": [{"answer": "a", "rank": 2}, {"answer": [a("b")], "rank": 1}]}
    assert read(row) == Preference([u("q")], [[a("b")], [a("a")]], ORIGIN, [-1.0, -2.0])


SCORED = {"text": "a", "score": 1}
MORE = {"prompt": "q", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "row", "field", "kind", "sentence"),
    [
        ("preference", {"prompt": "q", "chosen": "x"}, "rejected", "missing_field", 'field "rejected" is missing'),
        ("preference", {"prompt": "q", "chosen": None, "rejected": "x"}, "chosen", "null_field", "null"),
        ("preference", {"prompt": "q", "chosen": 5, "rejected": "x"}, "chosen", "wrong_type", "a string or a list of messages"),
        ("preference", {"chosen": "yes", "rejected": "no"}, "chosen", "no_prompt", 'give it as "prompt"'),
        ("preference", {"chosen": [u("p"), a("x")], "rejected": [u("q"), a("x")]}, "chosen", "no_prompt", "no common beginning"),
        ("preference", {"chosen": [u("q"), a("x")], "rejected": [u("q")]}, "rejected", "no_answer", "ends with a turn of the user"),
        ("preference", {"prompt": "z", "chosen": [u("q"), a("x")], "rejected": [u("q"), a("y")]}, "prompt", "bad_value", "begins with"),
        ("preference", {**PLAIN, "score_chosen": 1, "score_rejected": 2}, "score_chosen", "bad_value", "swap the two"),
        ("preference", {**PLAIN, "score_chosen": "x", "score_rejected": 2}, "score_chosen", "wrong_type", "expected a number"),
        ("preference", {**PLAIN, "prompt": [{"role": "usr", "content": ""}]}, "prompt[0].role", "bad_value", 'Did you mean "user"'),
        ("ranked", {"prompt": "q", "responses": ["a"], "scores": [1]}, "responses", "too_few_answers", "has 1 answer;"),
        ("ranked", {**MORE, "scores": [1]}, "scores", "bad_value", "has 1 numbers for 2 answers"),
        ("ranked", {**MORE, "scores": [1, float("nan")]}, "scores[1]", "wrong_type", "expected a number"),
        ("ranked", {**MORE, "scores": [1, True]}, "scores[1]", "wrong_type", "expected a number"),
        ("ranked", MORE, "responses", "no_ranking", '"ranked_answers"'),
        ("ranked", {"prompt": "q", "responses": ["a", 5], "scores": [1, 2]}, "responses[1]", "wrong_type", "a string or"),
        ("ranked", {"prompt": "q", "responses": ["a", [u("x")]], "scores": [1, 2]}, "responses[1]", "bad_value", "the answer alone"),
        ("ranked", {"prompt": "q", "completions": [SCORED, {"text": "b"}]}, "completions[1].score", "missing_field", "missing"),
        ("ranked", {"prompt": "q", "completions": [{"x": "a", "score": 1}, {"text": "b"}]}, "completions[0]", "wrong_type", "an answer"),
        ("ranked", {"responses": ["a", "b"], "scores": [1, 2]}, "prompt", "missing_field", 'field "prompt" is missing'),
    ],
)  # fmt: skip
def test_mistakes(refuses, name, row, field, kind, sentence):
    refuses(name, row, field, kind, sentence)


def test_a_row_without_its_rejected_answer_is_not_taken_for_a_prompt():
    with pytest.raises(RowError, match='"rejected" is missing'):
        convert({"prompt": "q", "chosen": "x"}, ORIGIN, "preference")
    assert best_match({"prompt": "q", "chosen": "x"}) is None
