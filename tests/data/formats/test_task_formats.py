"""Task collections: FLAN, LIMA, self-instruct, Dolly, multiple choice, classification."""

import pytest

from tunesmith.data.detect import best_match, convert, rows
from tunesmith.data.records import Chat, Origin, Prompt

ORIGIN = Origin("data.jsonl", 7)


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def read(row):
    (record,) = convert(row, ORIGIN, best_match(row)[0])
    return record


@pytest.mark.parametrize(
    "row",
    [
        {"inputs": "q", "targets": "x"},
        {"input": "q", "target": "x"},
        {"inputs_pretokenized": "q", "targets_pretokenized": "x"},
        {"conversations": ["q", "x"]},
        {"instruction": "q", "instances": [{"input": "", "output": "x"}]},
        {"instruction": "q", "context": "", "response": "x"},
        {"text": "q", "label": "x"},
    ],
)
def test_one_conversation_in_many_shapes(row):
    assert read(row) == Chat([u("q"), a("x")], [False, True], ORIGIN)


def test_flan_rationales_come_before_the_answer():
    assert read({"inputs": "q", "targets": "yes", "rationale": "Because."}).messages[1] == a(
        "Because.\nThe answer is yes."
    )
    item = next(
        rows([(1, {"0": "q", "1": "no", "2": "Why."})], "flan", "f", {"inputs": "0", "targets": "1", "rationale": "2"})
    )
    (record,) = convert(item[1], ORIGIN, "flan")
    assert record == Chat([u("q"), a("Why.\nThe answer is no.")], [False, True], ORIGIN)


def test_flan_definitions_and_tokens():
    assert read({"definition": "d", "inputs": "q", "targets": "x"}).messages[0] == u("d\n\nq")
    record = read({"inputs": [1, 2], "targets": [3], "inputs_pretokenized": "q", "targets_pretokenized": "x"})
    assert (record.messages, record.extra) == ([u("q"), a("x")], {"inputs": [1, 2], "targets": [3]})


def test_lima_takes_turns():
    record = read({"conversations": ["a", "b", "c", " "], "source": "s"})
    assert record == Chat([u("a"), a("b"), u("c"), a(" ")], [False, True, False, False], ORIGIN, extra={"source": "s"})
    assert read({"conversations": ["a"]}) == Prompt([u("a")], ORIGIN)


def test_self_instruct_makes_a_conversation_of_each_instance():
    row = {"id": "t", "instruction": "q", "instances": [{"input": "1", "output": "x"}, {"input": "2", "output": "y"}]}
    first, second = convert(row, ORIGIN, "self_instruct")
    assert (first.messages[0], first.extra) == (u("q\n\n1"), {"id": "t"})
    assert (second.messages, second.origin.part) == ([u("q\n\n2"), a("y")], 1)


LISTED = "q\n\nA. red\nB. blue"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["red", "blue"], "answer": 1},
        {"question": "q", "choices": ["red", "blue"], "answer": "B"},
        {"question": "q", "choices": ["red", "blue"], "answer": "b)"},
        {"question": "q", "options": '["red", "blue"]', "answer": "1"},
        {"question_stem": "q", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "options": {"A": "red", "B": "blue"}, "answer_idx": "B"},
        {"question": "q", "A": "red", "B": "blue", "C": None, "answer": "blue"},
        {"ctx": "q", "endings": ["red", "blue"], "label": "1"},
    ],
)
def test_choices(row):
    assert read(row) == Chat(
        [u(LISTED), a("B. blue")], [False, True], ORIGIN, extra={"choices": ["red", "blue"], "answer_index": 1}
    )


def test_choices_keep_their_own_labels_and_the_passage():
    record = read(
        {
            "article": "p",
            "question": "q",
            "choices": {"text": ["x", "y"], "label": ["1", "2"]},
            "answerKey": "1",
            "id": 4,
        }
    )
    assert record.messages == [u("p\n\nq\n\n1. x\n2. y"), a("1. x")]
    assert record.extra == {"id": 4, "choices": ["x", "y"], "answer_index": 0}


def test_classification():
    row = {"instruction": "Which?", "sentence": "t", "label": 1, "idx": 4}
    assert read(row) == Chat([u("Which?\n\nt"), a("1")], [False, True], ORIGIN, extra={"idx": 4})
    assert read({"text": "t", "label": 1, "label_text": "good"}).messages[1] == a("good")
    for label, answer in ((True, "true"), (2.0, "2"), (["a", 1], "a, 1")):
        assert read({"text": "t", "label": label}).messages[1] == a(answer)


X, XY = {"output": "x"}, ["x", "y"]


@pytest.mark.parametrize(
    ("name", "row", "field", "kind", "sentence"),
    [
        ("flan", {"inputs": "q"}, "targets", "missing_field", "missing"),
        ("flan", {"inputs": "q", "targets": ["x"]}, "targets", "wrong_type", "a string"),
        ("lima", {"conversations": []}, "conversations", "empty_field", "empty"),
        ("lima", {"conversations": ["a", 5]}, "conversations[1]", "wrong_type", "a string"),
        ("self_instruct", {"instruction": "q", "instances": []}, "instances", "empty_field", "empty"),
        ("self_instruct", {"instruction": "q", "instances": [X, {"otput": "x"}]}, "instances[1].output", "missing_field", '"otput"'),
        ("dolly", {"instruction": "q"}, "response", "missing_field", "missing"),
        ("choices", {"question": "q", "choices": ["x", "y"], "answer": 2}, "answer", "bad_value", "none of the 2 choices"),
        ("choices", {"question": "q", "choices": ["red", "blue"], "answer": "bleu"}, "answer", "bad_value", 'Did you mean "blue"'),
        ("choices", {"question": "q", "choices": ["x", "y"], "answer": -1}, "answer", "bad_value", "a number from 0"),
        ("choices", {"question": "q", "choices": ["x", "y"], "answer": True}, "answer", "bad_value", "a number from 0"),
        ("choices", {"question": "q", "choices": ["2", "1", "4"], "answer": "2"}, "answer", "bad_value", "write the letter (A)"),
        ("choices", {"question": "q", "choices": ["x"], "answer": 0}, "choices", "wrong_type", "two choices"),
        ("choices", {"question": "q", "choices": ["x", 1], "answer": 0}, "choices[1]", "wrong_type", "a string"),
        ("choices", {"question": "q", "choices": {"text": XY, "label": ["A"]}, "answer": 0}, "choices.label", "wrong_type", "2 labels"),
        ("choices", {"question": "q", "answer": 0}, "choices", "missing_field", "missing"),
        ("classification", {"text": "t"}, "label", "missing_field", "missing"),
        ("classification", {"label": "t"}, "text", "missing_field", "missing"),
        ("classification", {"text": "t", "label": {}}, "label", "wrong_type", "a label"),
    ],
)  # fmt: skip
def test_mistakes(refuses, name, row, field, kind, sentence):
    refuses(name, row, field, kind, sentence)
