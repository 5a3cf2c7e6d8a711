"""Each format's rows become the records that were meant, and each mistake is named by row and field."""

import pytest

from tunesmith import registry
from tunesmith.data.detect import convert, detect
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.errors import InputError

ORIGIN = Origin("data.jsonl", 7)


def read(name, row):
    return convert(row, ORIGIN, name)


def said(record):
    return [(m["role"], m["content"]) for m in record.messages]


@pytest.mark.parametrize(
    ("row", "name", "why"),
    [
        ({"text": "x"}, "text", "has text"),
        ({"instruction": "x", "output": "y", "text": "x y"}, "alpaca", "has instruction and output"),
        ({"instruction": "x", "context": "", "response": "y"}, "alpaca", "has instruction and response"),
        ({"prompt": "x", "completion": "y"}, "prompt_completion", "has prompt and completion"),
        ({"question": "x", "answer": "y"}, "prompt_completion", "has question and answer"),
        ({"prompt": "x", "messages": []}, "messages", "has messages"),
        ({"conversations": [{"role": "user", "content": "x"}]}, "messages", "has conversations of role and content"),
        ({"conversation": [{"from": "human", "value": "x"}]}, "sharegpt", "has conversation of from and value"),
    ],
)
def test_detected_and_explained(row, name, why):
    assert detect([(1, row)], "f") == (name, why)


def test_detection_looks_past_a_broken_first_row():
    rows = [(1, {"instruction": "x"}), (2, {"instruction": "x", "output": "y"})]
    assert detect(rows, "f")[0] == "alpaca"


def test_unknown_fields_name_the_formats_and_the_remedy():
    with pytest.raises(RowError, match=r"f, row 1: its fields \(foo\).*alpaca \(instruction, output\).*columns") as e:
        detect([(1, {"foo": 1})], "f")
    assert e.value.kind == "unknown_format"


def test_text():
    record = read("text", {"text": "Once", "source": "c4"})
    assert record == Text("Once", ORIGIN, {"source": "c4"})


def test_alpaca_with_everything():
    row = {
        "instruction": "Add",
        "input": "1 2",
        "output": "3",
        "system": "Be brief.",
        "history": [["Hi", "Yo"]],
        "category": "sum",
    }
    record = read("alpaca", row)
    assert said(record) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Yo"),
        ("user", "Add\n\n1 2"),
        ("assistant", "3"),
    ]
    assert record.trained == [False, False, True, False, True]
    assert record.extra == {"category": "sum"}


def test_alpaca_empty_input_adds_nothing_and_empty_output_is_not_trained():
    record = read("alpaca", {"instruction": "Add", "input": "", "output": " "})
    assert said(record)[0] == ("user", "Add")
    assert record.trained == [False, False]


def test_prompt_completion_of_strings_and_of_messages_mean_the_same():
    one = read("prompt_completion", {"prompt": "Hi", "completion": "Yo"})
    two = read(
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Yo"}]},
    )
    assert one == two
    assert one.trained == [False, True]


def test_prompt_completion_trains_only_the_completion():
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    record = read("prompt_completion", {"prompt": prompt, "completion": "d"})
    assert record.trained == [False, False, False, True]


@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}, {"loss_weight": 0.0}])
def test_messages_flags(flag):
    rows = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **flag},
        {"role": "assistant", "content": "c"},
    ]
    assert read("messages", {"messages": rows}).trained == [False, False, True]


def test_messages_tool_calls_become_objects():
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q": "x"}'}}
    row = {
        "messages": [
            {"role": "user", "content": "w?", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sun", "tool_call_id": "c1"},
        ],
        "tools": '[{"name": "look", "parameters": {"type": "object", "default": null}}]',
    }
    record = read("messages", row)
    assert record.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"q": "x"}}}],
    }
    assert record.messages[2]["tool_call_id"] == "c1"
    assert record.trained == [False, True, False]
    assert record.tools == [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def test_messages_parts():
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    record = read("messages", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": parts}]})
    assert record.messages[1] == {"role": "assistant", "content": "ab", "reasoning_content": "hm"}


def test_sharegpt_with_functions():
    row = {
        "conversations": [
            {"from": "human", "value": "w?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"q": 1}}'},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "system": "Be brief.",
        "tools": "[]",
    }
    record = read("sharegpt", row)
    assert [m["role"] for m in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.messages[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"q": 1}}
    assert record.trained == [False, False, True, False, True]
    assert record.tools is None


U = {"role": "user", "content": "x"}
CALL = {"from": "function_call", "value": "look("}
IMAGE = {"role": "user", "content": [{"type": "image"}]}


@pytest.mark.parametrize(
    ("name", "row", "field", "kind", "sentence"),
    [
        ("alpaca", {"instruction": "a", "otput": "b"}, "output", "missing_field", 'field "output" is missing. Did you mean "otput"?'),
        ("alpaca", {"instruction": None, "output": "b"}, "instruction", "null_field", "is null, expected a string"),
        ("alpaca", {"instruction": "a", "output": 5}, "output", "wrong_type", "is a number (5), expected a string"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history", "wrong_type", "[question, answer]"),
        ("text", {"text": ["a"]}, "text", "wrong_type", 'is a list (["a"]), expected a string'),
        ("messages", {"messages": []}, "messages", "empty_field", "empty list"),
        ("messages", {"messages": "hello"}, "messages", "wrong_type", "expected a list of messages"),
        ("messages", {"messages": [U, "x"]}, "messages[1]", "wrong_type", "expected an object"),
        ("messages", {"messages": [{"role": "user"}]}, "messages[0].content", "missing_field", "missing"),
        ("messages", {"messages": [{"content": "x"}]}, "messages[0].role", "missing_field", "missing"),
        ("messages", {"messages": [{"role": "asistant", "content": ""}]}, "messages[0].role", "bad_value", 'Did you mean "assistant"?'),
        ("messages", {"messages": [{**U, "train": True}]}, "messages[0].train", "bad_value", "only the assistant's"),
        ("messages", {"messages": [{**U, "weight": 2}]}, "messages[0].weight", "wrong_type", "expected 0 or 1"),
        ("messages", {"messages": [IMAGE]}, "messages[0].content[0]", "unsupported_part", "image"),
        ("sharegpt", {"conversations": [{"from": "humn", "value": "x"}]}, "conversations[0].from", "bad_value", 'Did you mean "human"?'),
        ("sharegpt", {"conversations": [{"from": "gpt"}]}, "conversations[0].value", "missing_field", "missing"),
        ("sharegpt", {"conversations": [CALL]}, "conversations[0].value", "wrong_type", "arguments"),
    ],
)  # fmt: skip
def test_mistakes(name, row, field, kind, sentence):
    with pytest.raises(RowError) as e:
        convert(row, ORIGIN, name, stated=True)
    assert (e.value.field, e.value.kind) == (field, kind)
    assert str(e.value).startswith("data.jsonl, row 7: ")
    assert sentence in str(e.value)


@pytest.mark.parametrize(
    "row", [{"messages": [U]}, {"instruction": "a", "input": "b", "output": "c"}, {"text": "t", "messages": [U]}]
)
def test_mixed_formats(row):
    with pytest.raises(RowError, match=r"row 7: this row is of the format .* in a file of text rows") as e:
        read("text", row)
    assert e.value.kind == "mixed_format"


def test_an_alpaca_row_in_a_prompt_completion_file_is_not_read_without_its_instruction():
    with pytest.raises(RowError, match="format alpaca"):
        read("prompt_completion", {"instruction": "a", "input": "b", "output": "c"})


def test_a_missing_field_is_not_called_another_format():
    with pytest.raises(RowError) as e:
        read("alpaca", {"input": "b", "output": "c"})
    assert (e.value.field, e.value.kind) == ("instruction", "missing_field")


def test_every_format_is_found_and_says_what_it_is():
    names = registry.names("data.formats")
    assert names == ["alpaca", "messages", "prompt_completion", "sharegpt", "text"]
    for name in names:
        module = registry.load("data.formats", name)
        assert module.__doc__.startswith(f"{name}: ")
        assert module.matches({}) is None
    with pytest.raises(InputError, match='Did you mean "alpaca"'):
        registry.load("data.formats", "alpacca")


def test_records_are_chats_except_text():
    assert isinstance(read("prompt_completion", {"input": "a", "output": "b"}), Chat)
