"""Each format's rows become the records that were meant, and each mistake is named by row and field."""

import random

import pytest

from tunesmith import registry
from tunesmith.data.detect import all_formats, best_match, check_columns, check_labels, convert, detect, relabel, rows
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.errors import InputError

ORIGIN = Origin("data.jsonl", 7)


def read(name, row):
    (record,) = convert(row, ORIGIN, name)
    return record


def said(record):
    return [(m["role"], m["content"]) for m in record.messages]


@pytest.mark.parametrize(
    ("row", "name", "why"),
    [
        ({"text": "x"}, "text", "has text"),
        ({"instruction": "x", "output": "y", "text": "x y"}, "alpaca", "has instruction and output"),
        ({"instruction": "x", "context": "", "response": "y"}, "dolly", "has instruction, context and response"),
        ({"instruction": "x", "response": "y"}, "dolly", "has instruction and response"),
        ({"instruction": "x", "instances": []}, "self_instruct", "has instruction and instances"),
        ({"inputs": "x", "targets": "y"}, "flan", "has inputs and targets"),
        ({"conversations": ["a", "b"]}, "lima", "has conversations of strings"),
        ({"text": "x", "label": 1}, "classification", "has text and a short label"),
        ({"text": "x", "label": "y " * 40}, "text", "has text"),
        ({"text": "x", "label": None}, "text", "has text"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0}, "choices", "has question, choices and answer"),
        ({"question": "q", "A": "a", "B": "b", "answer": "A"}, "choices", "has question, columns A, B, ... and answer"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "preference", "has chosen and rejected with prompt"),
        (
            {"chosen": "x a", "rejected": "x b"},
            "preference",
            "has chosen and rejected, whose common beginning is the prompt",
        ),
        (
            {"instruction": "x", "output": "a", "rejected": "b"},
            "preference",
            "has output and rejected with instruction",
        ),
        ({"prompt": "x", "responses": ["a", "b"], "scores": [1, 2]}, "ranked", "has responses with scores"),
        ({"prompt": "x", "completions": [{"text": "a", "score": 1}]}, "ranked", "has completions, each with its score"),
        ({"prompt": "x", "completion": "y", "label": True}, "verdict", "has completion with label"),
        ({"prompt": "x", "completion": "y", "label": "sports"}, "prompt_completion", "has prompt and completion"),
        ({"prompt": "x", "response": "y", "rating": 1}, "prompt_completion", "has prompt and response"),
        ({"messages": [{"role": "user", "content": "x"}], "label": 0}, "verdict", "has messages with label"),
        ({"prompt": "x"}, "prompt", "has prompt and no answer"),
        ({"question": "x", "ground_truth": "y"}, "prompt", "has question and ground_truth"),
        ({"question": "x", "answer": "y", "reference": "z"}, "prompt_completion", "has question and answer"),
        ({"turns": ["a", "b"]}, "prompt", "has turns of strings"),
        ({"prompt": {"replies": []}}, "oasst", "has a prompt with replies"),
        ({"parent_id": None, "text": "x", "role": "prompter"}, "oasst", "has messages with parent_id"),
        ({"messages": [{"role": "assistant", "content": "x", "rating": 1}]}, "chatlog", "has messages with rating"),
        ({"messages": [{"role": "assistant", "content": "x", "rating": None}]}, "messages", "has messages"),
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
    with pytest.raises(RowError, match=r"Nearest: .*alpaca \(instruction, output\)") as e:
        detect([(1, {"instrction": "x", "input": "", "outptu": "y" * 500, "k" * 500: 1})], "f")
    assert len(str(e.value)) < 500
    with pytest.raises(RowError, match=r"or \{text: 0, label: 1\} where the file has no header"):
        detect([(1, {"a fine film": "x", "1": "y"})], "data.TSV.gz")


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
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "output_text", "text": "a"},
        {"type": "text", "value": "b"},
    ]
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
def test_mistakes(refuses, name, row, field, kind, sentence):
    refuses(name, row, field, kind, sentence)


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
    assert names == [
        "alpaca", "chatgpt", "chatlog", "choices", "classification", "dolly", "flan", "function_calls", "glaive", "lima", "messages",
        "oasst", "preference", "prompt", "prompt_completion", "ranked", "self_instruct", "sharegpt", "squad", "text", "verdict",
    ]  # fmt: skip
    ranks = set()
    for name in names:
        module = registry.load("data.formats", name)
        assert module.__doc__.startswith(f"{name}: ")
        assert module.matches({}) is None
        ranks.add(module.RANK)
    assert len(ranks) == len(names)  # the order in which formats are asked is no accident of their names
    with pytest.raises(InputError, match='Did you mean "alpaca"'):
        registry.load("data.formats", "alpacca")


def test_records_are_chats_except_text():
    assert isinstance(read("prompt_completion", {"input": "a", "output": "b"}), Chat)


def test_a_row_of_a_format_has_one_of_its_signs_and_is_found_by_it():
    """SIGNS are a short cut: rows drawn at random must be found as they are when every format is asked."""
    rng = random.Random(0)
    fields = sorted({field for module in all_formats().values() for field in module.FIELDS})
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "rating": 1}]
    values = [
        "x",
        "good",
        1,
        None,
        [],
        ["a", "b"],
        [1, 2],
        turns,
        turns[:1],
        {"replies": []},
        [{"text": "a", "score": 1}],
    ]
    found = set()
    for _ in range(20000):
        row = {field: rng.choice(values) for field in rng.sample(fields, rng.randint(1, 5))}
        slow = next(((name, why) for name, m in all_formats().items() if (why := m.matches(row))), None)
        assert best_match(row) == slow, row
        found.add(slow and slow[0])
    assert len(found) > 10


def test_formats_that_are_alike_may_stand_in_one_file():
    assert said(read("alpaca", {"instruction": "a", "response": "b"})) == [("user", "a"), ("assistant", "b")]
    rated = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "rating": "bad"}]}
    assert [type(r).__name__ for r in convert(rated, ORIGIN, "messages")] == ["Verdict"]
    assert said(read("chatlog", {"messages": [U]})) == [("user", "x")]


def test_stated_formats_are_read_whatever_the_row_looks_like():
    (record,) = convert({"text": "t", "label": "spam"}, ORIGIN, "text", stated=True)
    assert record == Text("t", ORIGIN, {"label": "spam"})


def test_columns_name_fields_or_places():
    assert check_columns({"text": 0, "label": "1"}, "data") == {"text": "0", "label": "1"}
    items = [(1, {"0": "fine", "1": "1", "2": "z"}), (2, {"0": "dull"}), RowError(Origin("f", 3), None, "broken", "no")]
    first, second, third = rows(items, "classification", "f", {"text": "0", "label": "1"}, {"1": "good"})
    assert first == (1, {"2": "z", "text": "fine", "label": "good"})
    assert (second.field, second.kind, second.origin.row) == ("1", "missing_field", 2)
    assert third is items[2]
    for wrong in ({"text": -1}, {"text": True}, {"text": 1.5}, ["text"]):
        with pytest.raises(InputError, match="its place from 0"):
            check_columns(wrong, "data")
    with pytest.raises(InputError, match='Did you mean "label"'):
        check_columns({"labl": 0}, "data")


@pytest.mark.parametrize("value", [1, "1", 1.0, " 1 "])
def test_labels_are_found_however_they_are_written(value):
    labels = check_labels({0: "negative", 1: "positive"}, "data")
    assert relabel({"text": "t", "label": value}, labels, ORIGIN) == {"text": "t", "label": "positive"}


def test_named_labels_stand_for_those_the_file_names():
    assert relabel({"label": 1, "label_text": "pos"}, {"1": "good"}, ORIGIN) == {"label": "good"}


def test_system_prompts_under_either_name():
    for row in ({"question": "q", "response": "x"}, {"instruction": "q", "output": "x"}, {"conversations": ["q", "x"]}):
        record = convert({**row, "system": "", "system_prompt": "s"}, ORIGIN, best_match(row)[0])[0]
        assert said(record) == [("system", "s"), ("user", "q"), ("assistant", "x")]
        assert record.extra == {}


def test_labels_of_truth_and_of_lists_and_unknown_ones():
    labels = check_labels({True: "yes", "false": "no"}, "data")
    assert relabel({"label": "True"}, labels, ORIGIN) == {"label": "yes"}
    assert relabel({"labels": [False, True]}, labels, ORIGIN) == {"labels": ["no", "yes"]}
    with pytest.raises(
        RowError, match=r"row 7: field \"label\" is 2, which labels does not name \(it names true, false\)"
    ):
        relabel({"label": 2}, labels, ORIGIN)
    with pytest.raises(RowError, match=r'field "label" .* is missing\. Did you mean "lable"'):
        relabel({"lable": 2}, labels, ORIGIN)
    with pytest.raises(InputError, match="what each label is called"):
        check_labels(["a"], "data")


def test_media_are_refused_not_left_out():
    for name, row in (("messages", {"messages": [U]}), ("alpaca", {"instruction": "a", "output": "b"})):
        with pytest.raises(RowError, match="only text is read") as e:
            read(name, {**row, "images": ["a.png"]})
        assert (e.value.field, e.value.kind) == ("images", "unsupported_part")
        assert read(name, {**row, "images": []})


def test_arguments_that_are_no_object_stay_as_written():
    for written, read_as in (('{"a": 1}', {"a": 1}), ("", {}), ("look(", "look("), ('"5"', '"5"'), ("[1]", "[1]")):
        call = {"function": {"name": "f", "arguments": written}}
        made = read("messages", {"messages": [U, {"role": "assistant", "tool_calls": [call]}]}).messages
        assert made[1]["tool_calls"][0]["function"]["arguments"] == read_as
        assert read("messages", {"messages": made}).messages == made


def test_records_of_one_row_are_numbered():
    row = {"instruction": "a", "instances": [{"input": str(i), "output": "b"} for i in range(3)]}
    assert [r.origin for r in convert(row, ORIGIN, "self_instruct")] == [Origin("data.jsonl", 7, i) for i in range(3)]
