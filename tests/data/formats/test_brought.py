"""Shapes that people bring from other tools and published sets: each is read as that tool reads it, none loses what it says."""

import json

import pytest

from tunesmith.data.detect import best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Chat, Origin, Preference

ORIGIN = Origin("data.jsonl", 7)


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def call(arguments, **more):
    return {**more, "type": "function", "function": {"name": "look", "arguments": arguments}}


def read(row):
    name = best_match(row)[0]
    return name, convert(row, ORIGIN, name)


TALK = [u("q"), a("x"), u("r"), a("y")]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversation": [{"input": "q", "output": "x"}, {"input": "r", "output": "y"}]}, "sharegpt"),  # Capybara
        ({"data": ["q", "x", "r", "y"]}, "lima"),  # UltraChat
        ({"items": [{"from": f, "value": v} for f, v in zip(["human", "gpt"] * 2, "qxry", strict=True)]}, "sharegpt"),
        ({"conversations": [{"role": "human" if t["role"] == "user" else "gpt", "value": t["content"]} for t in TALK]}, "messages"),
        ({"messages": [{"role": "user" if t["role"] == "user" else "model", "content": t["content"]} for t in TALK]}, "messages"),
        ({"query": "r", "response": "y", "history": [["q", "x"]]}, "prompt_completion"),  # ms-swift
    ],
)  # fmt: skip
def test_one_conversation_in_many_shapes(row, name):
    found, (chat,) = read(row)
    assert (found, chat.messages, chat.extra) == (name, TALK, {})
    first = name != "prompt_completion"  # which trains the completion alone
    assert chat.trained == [False, first, False, True]


def test_generations_are_answers():
    assert read({"prompt": "q", "generation": "x"})[1] == [Chat([u("q"), a("x")], [False, True], ORIGIN)]


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "response": "good", "rejected_response": "bad"},
        {"messages": [u("q"), a("good")], "rejected_response": "bad"},
        {"messages": [u("q"), a("good")], "rejected_messages": [u("q"), a("bad")]},
        {"messages": [u("q"), a("good")], "rejected_messages": [a("bad")]},
        {"prompt": "q", "chosen": ["good"], "rejected": ["bad"]},
    ],
)
def test_worse_answers_beside_the_good_one_are_no_extra_fields(row):
    assert read(row) == ("preference", [Preference([u("q")], [[a("good")], [a("bad")]], ORIGIN)])


def test_several_rejected_answers_are_ties_under_the_chosen_one():
    _, (record,) = read({"prompt": "q", "chosen": "x", "rejected": ["y", [a("z")]], "id": 1})
    assert record == Preference([u("q")], [[a("x")], [a("y")], [a("z")]], ORIGIN, [1.0, 0.0, 0.0], None, {"id": 1})
    with pytest.raises(RowError, match=r'row 7: field "rejected\[1\]" begins with a turn of the user'):
        read({"prompt": "q", "chosen": "x", "rejected": ["y", [u("z")]]})


def test_a_field_named_rejected_may_be_no_answer():
    assert read({"instruction": "q", "output": "x", "rejected": False})[0] == "alpaca"


@pytest.mark.parametrize(
    "row",
    [
        {"context": "c", "question": "q", "answers": {"text": ["x", "y"], "answer_start": [1, 2]}},
        {"context": "c", "question": "q", "answers": [{"text": "x"}, {"text": "y"}]},
        {"context": "c", "question": "q", "answers": ["x", "y"]},
        {"context": "c", "question": "q", "answers": '["x", "y"]'},
        {"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "x"}, {"text": "y"}]}]}]},
    ],
)
def test_questions_about_a_text(row):
    expected = Chat([u("c\n\nq"), a("x")], [False, True], ORIGIN, extra={"answers": ["x", "y"]})
    assert read(row) == ("squad", [expected])


def test_an_article_makes_a_chat_of_each_question():
    qas = [{"question": "q", "answers": [{"text": "x"}]}, {"question": "r", "answers": [], "is_impossible": True}]
    article = {"title": "t", "paragraphs": [{"context": "c", "qas": qas}, {"context": "d", "qas": []}]}
    _, made = read(article)
    assert [(m.messages[0]["content"], m.trained[1], m.origin.part) for m in made] == [
        ("c\n\nq", True, 0), ("c\n\nr", False, 1),
    ]  # fmt: skip
    assert made[1].extra == {"title": "t", "is_impossible": True, "answers": []}
    del qas[1]["answers"]
    with pytest.raises(RowError, match=r'row 7: field "paragraphs\[0\].qas\[1\].answers" is missing'):
        read(article)


def test_the_context_of_a_question_is_asked_too():
    _, (chat,) = read({"question": "q", "context": "c", "answer": "x"})
    assert (chat.messages, chat.extra) == ([u("c\n\nq"), a("x")], {})
    _, (pair,) = read({"question": "q", "context": "c", "chosen": "x", "rejected": "y"})
    assert (pair.prompt, pair.extra) == ([u("c\n\nq")], {})
    _, (chat,) = read({"question": "q", "context": {"title": ["t"]}, "answer": "x"})  # HotpotQA's, no text
    assert (chat.messages[0], list(chat.extra)) == (u("q"), ["context"])


def test_calls_as_answers():
    tools = [
        {"name": "look", "description": "d", "parameters": {"at": {"type": "str"}, "n": {"type": "int", "default": 1}}}
    ]
    row = {
        "query": "q",
        "tools": json.dumps(tools),
        "answers": json.dumps([{"name": "look", "arguments": {"at": "x"}}]),
    }
    name, (chat,) = read(row)
    assert (name, chat.trained) == ("function_calls", [False, True])
    assert chat.messages[1] == {**a(""), "tool_calls": [call({"at": "x"})]}
    assert chat.tools[0]["function"]["parameters"] == {
        "type": "object", "properties": tools[0]["parameters"], "required": ["at"],
    }  # fmt: skip
    row["answers"] = '[{"name": "look", "arguments": {}}, {"nam": 1}]'
    with pytest.raises(RowError, match=r'row 7: field "answers\[1\]" is an object .*, expected an object with "name"'):
        read(row)


def test_transcripts_with_functions():
    chat = (
        'USER: Where\'s it?\n\n\nASSISTANT: <functioncall> {"name": "look", "arguments": \'{"at": "Ann\\\'s"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"x": 2}\n\n\nASSISTANT: There.\nUSER guide: none <|endoftext|>\n\n\n'
    )
    tools = '{"name": "look", "parameters": {}}\n\n{"name": "go"}'
    name, (record,) = read({"system": f"SYSTEM: Use them if required -\n{tools}\n", "chat": chat})
    assert name == "glaive"
    assert record.messages == [
        {"role": "system", "content": "Use them if required"}, u("Where's it?"), {**a(""), "tool_calls": [call({"at": "Ann's"})]},
        {"role": "tool", "content": '{"x": 2}'}, a("There.\nUSER guide: none"),
    ]  # fmt: skip
    assert record.trained == [False, False, True, False, True]
    assert [tool["function"]["name"] for tool in record.tools] == ["look", "go"]
    _, (plain,) = read({"system": "SYSTEM: Write {x}.", "chat": "USER: q\n\n\nASSISTANT: x"})
    assert (plain.messages, plain.tools) == ([{"role": "system", "content": "Write {x}."}, u("q"), a("x")], None)


def test_tool_use_in_parts():
    """Anthropic's: a result is part of the user's turn; what else that says comes after it."""
    use = {"type": "tool_use", "id": "t", "name": "look", "input": {"at": "x"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "5"}]}
    row = {
        "messages": [u("q"), {"role": "assistant", "content": [{"type": "text", "text": "Well."}, use]},
                     {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}, a("Five.")],
        "tools": [{"name": "look", "description": "d", "input_schema": {"type": "object"}}],
    }  # fmt: skip
    _, (chat,) = read(row)
    assert chat.messages == [
        u("q"), {**a("Well."), "tool_calls": [call({"at": "x"}, id="t")]},
        {"role": "tool", "content": "5", "tool_call_id": "t"}, u("And?"), a("Five."),
    ]  # fmt: skip
    assert chat.trained == [False, True, False, False, True]
    assert chat.tools == [{"type": "function", "function": {
        "name": "look", "description": "d", "parameters": {"type": "object"}}}]  # fmt: skip
    row["messages"][1]["rating"] = 1  # also in a log
    name, made = read(row)
    assert (name, made[0].messages, made[1].good) == ("chatlog", chat.messages, True)
    result["content"] = 5
    with pytest.raises(RowError, match=r'row 7: field "messages\[2\].content" is a number \(5\)'):
        read(row)


def test_calls_and_results_by_role():
    turns = [u("q"), {"role": "tool_call", "content": '{"name": "look", "arguments": {}}'},
             {"role": "tool_response", "content": "5"}, a("Five.")]  # fmt: skip
    _, (chat,) = read({"messages": turns})
    assert chat.messages == [u("q"), {**a(""), "tool_calls": [call({})]}, {"role": "tool", "content": "5"}, a("Five.")]
    turns[1]["content"] = "look()"
    with pytest.raises(
        RowError, match=r'row 7: field "messages\[1\].content" is a string \("look\(\)"\), expected JSON'
    ):
        read({"messages": turns})


def test_older_functions_are_tools():
    functions = [{"name": "look", "parameters": {}}]
    asked = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}}
    _, (chat,) = read({"messages": [u("q"), asked], "functions": functions})
    assert (chat.tools, chat.extra) == ([{"type": "function", "function": functions[0]}], {})
    _, (other,) = read({"messages": TALK, "functions": 3})
    assert (other.tools, other.extra) == (None, {"functions": 3})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_label_that_is_not_there_is_not_trained(value):
    row = {"text": "x", "label": value}
    with pytest.raises(RowError, match='row 7: field "label" is a number'):
        convert(row, ORIGIN, "classification")
    assert convert({**row, "label": 3.799999952316284}, ORIGIN, "classification")[0].messages[1] == a("3.8")
    assert convert({**row, "label": 1234567.0}, ORIGIN, "classification")[0].messages[1] == a("1234567")


@pytest.mark.parametrize(
    "row",
    [
        {"inputs": "q", "targets": "x"},
        {"conversations": ["q", "x"]},
        {"question": "q", "choices": ["x", "y"], "answer": 0},
        {"text": "q", "label": "x"},
        {"context": "c", "question": "q", "answers": ["x"]},
        {"messages": [u("q"), a("x")], "rejected_response": "y"},
    ],
)
def test_pictures_are_refused_everywhere(row):
    with pytest.raises(RowError, match='field "image" names media'):
        read({**row, "image": "x.png"})


@pytest.mark.parametrize(
    "beside", [{"data": ["x", "y"]}, {"items": TALK}, {"items": [{"from": "human", "value": "q"}]}]
)
@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "completion": "x"}, "prompt_completion"),
        ({"instruction": "q", "output": "x"}, "alpaca"),
        ({"text": "q", "label": "x"}, "classification"),
        ({"text": "q"}, "text"),
        ({"prompt": "q", "chosen": "x", "rejected": "y"}, "preference"),
    ],
)
def test_a_vague_word_says_less_than_the_others(row, name, beside):
    found, (record,) = read({**row, **beside})
    assert (found, record.extra) == (name, beside)
