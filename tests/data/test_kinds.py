"""Each kind's plain row reads back to the same record; kinds become other kinds as derived by hand."""

import json
import random
from dataclasses import replace

import pytest

from tunesmith.data.detect import all_formats, best_match, convert
from tunesmith.data.formats._common import RowError, answers
from tunesmith.data.kinds import _fields_read, as_chats, as_kind, to_row
from tunesmith.data.records import KINDS, Chat, Origin, Preference, Prompt, Text, Verdict

O = Origin("data.jsonl", 7)  # noqa: E741
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments):
    return {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}


def back(record):
    """Return what the record's row is read as after it went through JSON."""
    row = json.loads(json.dumps(to_row(record)))
    return convert(row, record.origin, best_match(row)[0])


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (Text("t", O, {"id": 1}), {"text": "t", "id": 1}),
        (
            Chat([u("p"), a("x"), u("q"), a("y"), a("")], [False, False, False, True, False], O, TOOLS),
            {"messages": [u("p"), a("x", train=False), u("q"), a("y"), a("")], "tools": TOOLS},
        ),
        (Preference([u("p")], [[a("x")], [a("y")]], O), {"prompt": [u("p")], "chosen": [a("x")], "rejected": [a("y")]}),
        (
            Preference([u("p")], [[a("x")], [a("y")]], O, [1.0, 1.0]),
            {"prompt": [u("p")], "chosen": [a("x")], "rejected": [a("y")], "score_chosen": 1.0, "score_rejected": 1.0},
        ),
        (
            Preference([u("p")], [[a("x")], [a("y")], [a("z")]], O, [3.0, 1.0, 1.0]),
            {"prompt": [u("p")], "responses": [[a("x")], [a("y")], [a("z")]], "scores": [3.0, 1.0, 1.0]},
        ),
        (Preference([u("p")], [[a("x")]] * 3, O), {"prompt": [u("p")], "ranked_answers": [[a("x")]] * 3}),
        (Verdict([u("p")], [a("x")], False, O), {"prompt": [u("p")], "completion": [a("x")], "label": False}),
        (Prompt([u("p")], O, "r"), {"prompt": [u("p")], "ground_truth": "r"}),
        (Prompt([u("p")], O), {"prompt": [u("p")]}),
    ],
)
def test_the_plain_row_of_each_kind(record, row):
    assert to_row(record) == row
    assert back(record) == [record]


def test_extra_fields_stand_beside_unless_they_would_change_the_row():
    assert to_row(Text("t", O, {"label": "spam", "id": 1})) == {"text": "t", "extra_fields": {"label": "spam", "id": 1}}
    assert to_row(Chat([u("p"), a("x")], [False, True], O, extra={"text": "t"}))["text"] == "t"
    assert to_row(Verdict([u("p")], [a("x")], True, O, extra={"label": 5}))["extra_fields"] == {"label": 5}
    assert to_row(Text("t", O, {"extra_fields": {"x": 1}}))["extra_fields"] == {"extra_fields": {"x": 1}}


def random_message(rng, role):
    text = rng.choice(
        ["", " ", "hi", "Grüß 😀 \u2028 \x00 é", "a\n\nb", '[{"role": "user"}]', "\n\nHuman: x\n\nAssistant: y", "=1+1"]
    )
    message = {"role": role, "content": text}
    if role == "assistant":
        if rng.random() < 0.3:
            message["tool_calls"] = [call(rng.choice([{}, {"q": "ü", "n": [1, None]}, "look(", '"5"', "[1]"]))]
        if rng.random() < 0.3:
            message[rng.choice(["reasoning_content", "thinking"])] = rng.choice(["", "hm"])
    if role == "tool":
        message |= {"tool_call_id": "c1", "name": "look"}
    return message


def random_record(rng):
    fields = sorted(
        {field for module in all_formats().values() for field in module.FIELDS} | {"extra_fields", "category", "train"}
    )
    values = ["x", "good", 1, None, [], {"a": 1}, ["a", "b"], [u("q"), a("x", rating=1)], 0.5]
    extra = {rng.choice(fields): rng.choice(values) for _ in range(rng.choice([0, 0, 1, 3]))}
    tools = rng.choice([None, None, TOOLS])
    roles = [rng.choice(["user", "assistant", "tool", "system"]) for _ in range(rng.randint(1, 4))]
    prompt = [random_message(rng, role) for role in roles]
    answer = [
        [random_message(rng, "assistant"), *([random_message(rng, "tool")] if rng.random() < 0.2 else [])]
        for _ in range(rng.randint(2, 4))
    ]
    match rng.randint(0, 4):
        case 0:
            return Text(random_message(rng, "user")["content"], O, extra)
        case 1:
            trained = [m["role"] == "assistant" and answers(m) and rng.random() < 0.7 for m in prompt]
            return Chat(prompt, trained, O, tools, extra)
        case 2:
            scores = sorted((float(rng.randint(-2, 2)) / 3 for _ in answer), reverse=True)
            return Preference(prompt, answer, O, rng.choice([None, scores]), tools, extra)
        case 3:
            return Verdict(prompt, answer[0], rng.random() < 0.5, O, tools, extra)
    return Prompt(prompt, O, rng.choice([None, "", "8", "ü"]), tools, extra)


def test_round_trips_of_any_record_are_exact():
    rng = random.Random(0)
    aside = 0
    for _ in range(5000):
        record = random_record(rng)
        assert back(record) == [record], to_row(record)
        aside += "extra_fields" in to_row(record)
    assert 500 < aside < 2500  # both ways are taken


ROWS = [
    {"text": "Grüß 😀", "source": "c4"},
    {"instruction": "i", "input": "n", "output": "o", "system": "s", "history": [["a", "b"]], "text": "rendered"},
    {"instruction": "i", "context": "c", "response": "r", "category": "qa"},
    {"prompt": "p", "completion": "c", "label": "sports"},
    {"messages": [u("p"), a("x", weight=0), a(None, tool_calls=[call('{"q": 1}')]), {"role": "tool", "content": "1"}], "label": "z"},
    {"messages": [u("p"), {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "y"}]}]},
    {"conversations": [{"from": "human", "value": "p"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}], "id": "x"},
    {"conversations": ["p", "x"], "source": "s"},
    {"inputs": "p", "targets": "x", "task_name": "t"},
    {"instruction": "i", "instances": [{"input": "", "output": "x"}], "is_classification": False},
    {"question": "q", "choices": ["a", "b"], "answer": 1, "subject": "s"},
    {"question": "q", "context": "c", "answers": {"text": ["x", "y"], "answer_start": [3, 5]}, "id": "1"},
    {"question": "q", "context": "c", "answer": "x"},
    {"query": "q", "tools": '[{"name": "look", "parameters": {"at": {"type": "str"}}}]',
     "answers": '[{"name": "look", "arguments": {"at": "x"}}]', "id": 1},
    {"system": 'SYSTEM: Help. -\n{"name": "look"}', "chat": 'USER: p\n\n\nASSISTANT: x <|endoftext|>', "id": 1},
    {"prompt": "p", "chosen": "x", "rejected": ["y", "z"], "source": "s"},
    {"messages": [u("p"), a("x")], "rejected_response": "y", "source": "s"},
    {"text": "t", "label": "x", "idx": 3},
    {"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 4, "score_rejected": 4, "messages": [u("p"), a("x")]},
    {"instruction": "i", "completions": [{"response": x, "overall_score": s} for x, s in (("x", 1), ("y", 2), ("z", 2))]},
    {"messages": [u("p"), a("x")], "label": False},
    {"turns": ["p", "q"], "reference": ["r", "s"]},
    {"messages": [u("p"), a("x", rating=1, edited="y", regenerations=["z"])], "user": "u"},
    {"mapping": {"x": {"parent": None, "message": {"author": {"role": "user"}, "content": {"parts": ["q"]}}, "children": ["y"]},
                 "y": {"parent": "x", "message": {"author": {"role": "assistant"}, "content": {"parts": ["x"]}}}}},
    {"message_tree_id": "t", "prompt": {"text": "p", "role": "prompter", "replies": [
        {"text": "x", "role": "assistant", "rank": 1, "replies": []}, {"text": "y", "role": "assistant", "rank": 1, "replies": []}]}},
]  # fmt: skip


def test_round_trips_of_every_format():
    seen = set()
    for row in ROWS:
        name = best_match(row)[0]
        seen.add(name)
        for record in convert(row, O, name):
            (found,) = back(record)
            assert found == record
    assert seen == set(all_formats())


class Watched(dict):
    """A row that notes which of its fields are asked for."""

    asked: set[str]

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)


def test_no_format_reads_a_field_that_is_not_among_those_checked():
    """Extra fields of other names are written beside a plain row without reading it back: they must mean nothing to anybody."""
    for row in ROWS:
        for record in convert(row, O, best_match(row)[0]):
            plain = to_row(replace(record, extra={"other": 1}))
            watched = Watched(plain)
            watched.asked = set()
            (found,) = convert(watched, O, best_match(watched)[0])
            assert found == replace(record, extra={"other": 1}, origin=O)
            assert "other" in plain
            assert "messages" in watched.asked or "prompt" in watched.asked or "text" in watched.asked
            assert watched.asked <= _fields_read()


CHAT = Chat([u("p"), a("x"), u("q"), a("y")], [False, True, False, True], O, TOOLS, {"id": 1})
PAIR = Preference([u("p")], [[a("x")], [a("y")], [a("z")]], O, [2.0, 2.0, 1.0], TOOLS, {"id": 1})


def test_kinds_become_kinds():
    assert as_kind(CHAT, "chat") == [CHAT]
    assert as_kind(CHAT, "prompt") == [Prompt([u("p"), a("x"), u("q")], O, "y", TOOLS, {"id": 1})]
    assert as_kind(Chat([u("p"), a("x")], [False, False], O), "prompt") == []
    assert as_kind(PAIR, "chat") == [Chat([u("p"), a("x")], [False, True], O, TOOLS, {"id": 1})]
    assert [(v.answer[0]["content"], v.good) for v in as_kind(PAIR, "verdict")] == [
        ("x", True),
        ("y", True),
        ("z", False),
    ]
    assert as_kind(Preference([u("p")], [[a("x")], [a("y")]], O, [1.0, 1.0]), "verdict") == []
    assert as_kind(Preference([u("p")], [[a("x")], [a("y")]], O), "verdict") == [
        Verdict([u("p")], [a("x")], True, O), Verdict([u("p")], [a("y")], False, O)]  # fmt: skip
    assert as_kind(PAIR, "prompt") == [Prompt([u("p")], O, None, TOOLS, {"id": 1})]
    good, bad = Verdict([u("p")], [a("x")], True, O), Verdict([u("p")], [a("x")], False, O)
    assert as_kind(good, "chat") == [Chat([u("p"), a("x")], [False, True], O)]
    assert as_kind(bad, "chat") == []
    assert as_kind(good, "prompt") == [Prompt([u("p")], O, "x")]
    assert as_kind(bad, "prompt") == [Prompt([u("p")], O)]
    assert as_kind(Prompt([u("p")], O, "x"), "chat") == [Chat([u("p"), a("x")], [False, True], O)]
    assert as_kind(Prompt([u("p")], O), "chat") == []


@pytest.mark.parametrize(
    ("record", "kind"),
    [(Text("t", O), "chat"), (CHAT, "preference"), (CHAT, "verdict"), (CHAT, "text"), (Prompt([u("p")], O), "verdict")],
)
def test_what_cannot_become_another_kind_is_said(record, kind):
    with pytest.raises(RowError, match=rf"data.jsonl, row 7: a {KINDS[type(record)]} row cannot be read as {kind}"):
        as_kind(record, kind)


def test_chats_to_render():
    assert as_chats(Text("t", O)) == []
    assert as_chats(CHAT) == [CHAT]
    assert [(c.messages[-1]["content"], c.trained) for c in as_chats(PAIR)] == [(x, [False, True]) for x in "xyz"]
    before = Verdict(
        [u("p"), a("old"), u("q")], [a("", tool_calls=[call({})]), {"role": "tool", "content": "1"}, a("x")], False, O
    )
    assert [c.trained for c in as_chats(before)] == [[False, False, False, True, False, True]]
    assert as_chats(Prompt([u("p")], O)) == [Chat([u("p")], [False], O)]
    assert as_chats(Prompt([u("p")], O, "x")) == [Chat([u("p"), a("x")], [False, True], O)]


def test_a_call_is_no_reference():
    asks = {"role": "assistant", "content": "", "tool_calls": [call({})]}
    assert as_kind(Chat([u("p"), asks], [False, True], O, TOOLS), "prompt") == [Prompt([u("p")], O, None, TOOLS)]
    assert as_kind(Verdict([u("p")], [asks], True, O, TOOLS), "prompt") == [Prompt([u("p")], O, None, TOOLS)]
