"""Inspection collects every planted problem with its row and field; showing explains every token."""

import io
import json

import pytest
from rich.console import Console

from tunesmith.data.inspect import inspect, print_inspection
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.show import explain, show
from tunesmith.errors import InputError


def found(report, i=0):
    return [(p["row"], p["field"], p["kind"]) for p in report["sources"][i]["problems"]]


def turns(*roles):
    return {"messages": [{"role": r, "content": f"{r} {i}"} for i, r in enumerate(roles)]}


def test_a_clean_file(write):
    path = write("a.jsonl", [{"instruction": "a", "output": "b"}])
    report = inspect([path], None)
    assert report == {"sources": [{"path": path, "format": "alpaca", "rows": 1, "problems": []}], "tokens": None}


def test_every_broken_row_is_listed(write):
    lines = [
        json.dumps({"instruction": "a", "output": "b"}),
        '{"instruction": "a", ',
        json.dumps({"instruction": "a"}),
        json.dumps({"instruction": "c", "output": None}),
        json.dumps([1]),
        json.dumps({"instruction": "d", "output": " "}),
        json.dumps({"instruction": " ", "output": "e"}),
        json.dumps({"messages": []}),
        json.dumps({"instruction": "a", "output": "b"}),
    ]
    report = inspect(write("a.jsonl", "\n".join(lines)), None)
    assert report["sources"][0]["rows"] == 9
    assert found(report) == [
        (2, None, "broken_json"),
        (3, "output", "missing_field"),
        (4, "output", "null_field"),
        (5, None, "not_object"),
        (6, "output", "empty_answer"),
        (7, "instruction", "empty_prompt"),
        (8, None, "mixed_format"),
        (9, None, "duplicate"),
    ]
    assert all(set(p) == {"row", "field", "kind", "message"} for p in report["sources"][0]["problems"])
    json.dumps(report)


@pytest.mark.parametrize(
    ("roles", "problems"),
    [
        (("system", "user", "assistant"), []),
        (("user", "system", "assistant"), [("messages[1]", "role_order")]),
        (("user", "user", "assistant"), [("messages[1]", "role_order")]),
        (("user", "assistant", "assistant"), [("messages[2]", "role_order")]),
        (("assistant", "user", "assistant"), [("messages[0]", "role_order")]),
        (("user", "assistant", "user"), [("messages[2]", "ends_without_answer")]),
        (("user", "tool", "assistant"), [("messages[1]", "orphan_tool")]),
        (("user",), [("messages[0]", "no_answer")]),
    ],
)
def test_role_order(write, roles, problems):
    report = inspect(write("m.jsonl", [turns(*roles)]), None)
    assert [(f, k) for _, f, k in found(report)] == problems


def test_whole_files_that_cannot_be_read_are_problems_of_their_file(write):
    good = write("g.jsonl", [{"text": "a"}])
    empty, odd = write("e.jsonl", ""), write("o.jsonl", [{"foo": 1}])
    report = inspect([good, empty, odd], None)
    assert [s["format"] for s in report["sources"]] == ["text", None, None]
    assert found(report, 1) == [(None, None, "empty_file")]
    assert found(report, 2) == [(1, None, "unknown_format")]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data file"):
        inspect(str(tmp_path / "no.jsonl"), None)


def test_columns(write):
    path = write("c.jsonl", [{"q": "a", "a": "b"}, {"q": "a"}])
    report = inspect({"path": path, "columns": {"prompt": "q", "completion": "a"}}, None)
    assert report["sources"][0]["format"] == "prompt_completion"
    assert found(report) == [(2, "a", "missing_field")]


def test_token_lengths_and_printing(write, tokenizer, monkeypatch):
    import tunesmith.model.loading as loading

    monkeypatch.setattr(loading, "load_tokenizer", lambda source: (tokenizer, []))
    monkeypatch.setattr(loading, "resolve", lambda model: model)
    rows = [{"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": "yoyo"}, {"prompt": "a"}]
    report = inspect(write("a.jsonl", rows), "m")
    assert report["tokens"] == {
        "model": "m",
        "examples": 2,
        "min": 14,
        "median": 15.0,
        "p95": 16,
        "max": 16,
        "total": 30,
        "scored": 8,
        "scored_share": 8 / 30,
        "notices": [],
    }
    out = io.StringIO()
    print_inspection(report, Console(file=out, width=200))
    assert "3 rows, prompt_completion, 1 problem" in out.getvalue()
    assert 'field "completion" is missing' in out.getvalue()
    assert "2 examples, 14-16 long" in out.getvalue()
    nothing = inspect(write("b.jsonl", [{"prompt": "a", "completion": ""}]), "m")
    assert "nothing would be scored" in nothing["tokens"]["error"]


def test_real_set(shared):
    path = shared / "data" / "instruction" / "stanford_alpaca_5000"
    report = inspect(str(path), str(shared / "models" / "tinystories-656k-llama"))
    assert found(report) == [(2336, "output", "empty_answer"), (4659, "output", "empty_answer")]
    assert report["tokens"]["examples"] == 4998


def test_explained_by_turn(tokenizer):
    messages = [
        {"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "no"), ("user", "b"), ("assistant", "yo"))
    ]
    record = Chat(messages, [False, False, False, True], Origin("d", 1))
    ((*tokens,),) = explain(record, tokenizer)
    assert [t.reason for t in tokens[:7]] == [
        *["template: context"] * 3,
        *["user turn: context"] * 2,
        *["template: context"] * 2,
    ]
    assert [(t.text, t.reason) for t in tokens[10:12]] == [
        ("n", "answer not trained (train: false)"),
        ("o", "answer not trained (train: false)"),
    ]
    assert [(t.text, t.scored, t.reason) for t in tokens if t.scored] == [
        ("y", True, "answer: scored"),
        ("o", True, "answer: scored"),
        ("<|im_end|>", True, "end of turn: scored"),
    ]


def test_explained_text(tokenizer):
    ((*tokens,),) = explain(Text("ab", Origin("d", 1)), tokenizer)
    assert [t.scored for t in tokens] == [False, True, True]
    assert tokens[-1].text == "<eos>"


def test_show_agrees_with_what_is_trained(write, tokenizer, monkeypatch):
    import tunesmith.model.loading as loading

    monkeypatch.setattr(loading, "load_tokenizer", lambda source: (tokenizer, []))
    monkeypatch.setattr(loading, "resolve", lambda model: model)
    out = io.StringIO()
    rows = [{"prompt": "hi", "completion": "yo"}, {"prompt": "x", "completion": "y"}]
    show(write("a.jsonl", rows), "m", 1, Console(file=out, width=200))
    assert "14 tokens, 3 scored" in out.getvalue()
    assert "end of turn: scored" in out.getvalue()
    assert "row 2" not in out.getvalue()
