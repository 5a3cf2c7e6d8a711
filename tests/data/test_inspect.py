"""Inspection collects every planted problem with its row and field."""

import io
import json

import pytest
from rich.console import Console

from tunesmith.data.inspect import inspect, refuse_unreadable
from tunesmith.data.inspect_print import print_inspection, sparkline
from tunesmith.errors import InputError


def found(report, i=0):
    return [(p["row"], p["field"], p["kind"]) for p in report["sources"][i]["problems"]]


def turns(*roles):
    return {"messages": [{"role": r, "content": f"{r} {i}"} for i, r in enumerate(roles)]}


def test_a_clean_file(write):
    path = write("a.jsonl", [{"instruction": "a", "output": "b"}])
    (source,) = inspect([path])["sources"]
    assert source == {
        "path": path,
        "source": path,
        "format": "alpaca",
        "why": "has instruction and output",
        "rows": 1,
        "records": 1,
        "kinds": {"chat": 1},
        "fields": {"instruction": {"string": 1}, "output": {"string": 1}},
        "labels": {},
        "languages": {},
        "characters": {
            "n": 1, "min": 1, "median": 1.0, "p95": 1, "max": 1, "histogram": {"edges": [1, 2], "counts": [1]},
        },
        "problems": [],
        "counts": {},
        "more": {},
        "error": None,
    }  # fmt: skip


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
    keys = {"row", "field", "kind", "severity", "message", "sample", "remedy"}
    assert all(set(p) == keys for p in report["sources"][0]["problems"])
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
    assert [s["error"] is None for s in report["sources"]] == [True, False, False]
    with pytest.raises(InputError, match=r"e\.jsonl: the file is empty\. \(1 more file cannot be read either\.\)"):
        refuse_unreadable(report)


def test_what_cannot_be_told_is_counted_all_the_same(write):
    report = inspect(write("o.jsonl", [{"foo": i} for i in range(45)]))
    assert report["sources"][0]["rows"] == 45


def test_broken_rows_alone_are_no_unreadable_file(write):
    report = inspect(write("a.jsonl", '{"text": "a"}\n{"text": \n'))
    refuse_unreadable(report)
    assert found(report) == [(2, None, "broken_json")]


def test_of_many_problems_of_a_kind_the_first_thousand_are_listed_and_all_counted(write):
    rows = [{"instruction": f"say {i}", "output": ""} for i in range(1200)]
    (source,) = inspect(write("a.jsonl", rows))["sources"]
    assert [p["row"] for p in source["problems"]] == list(range(1, 1001))
    assert (source["counts"], source["more"]) == ({"empty_answer": 1200}, {"empty_answer": 200})


def test_a_rows_problems_name_its_own_fields(write):
    rows = [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "the caf\ufffd"}]},
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}]},
    ]
    assert found(inspect(write("a.jsonl", rows))) == [
        (1, "conversations[1].value", "replacement_character"),
        (2, "conversations[1]", "empty_answer"),
    ]


def test_messages_of_a_tree_are_joined(write):
    rows = [
        {"message_id": "a", "parent_id": None, "text": "Who?", "role": "prompter"},
        {"message_id": "b", "parent_id": "a", "text": "the caf\ufffd", "role": "assistant"},
    ]
    (source,) = inspect(write("t.jsonl", rows))["sources"]
    assert (source["rows"], source["records"], source["format"]) == (2, 1, "oasst")
    assert [p["kind"] for p in source["problems"]] == ["replacement_character"]


def test_a_folders_other_splits_are_inspected_for_leaks(write, tmp_path):
    rows = [{"instruction": f"What is {i} and one?", "output": f"It is {i + 1}."} for i in range(30)]
    write("set/train.jsonl", rows[:20])
    write("set/validation.jsonl", [*rows[20:], {"instruction": "What is 7 and one?", "output": "Eight."}])
    report = inspect(str(tmp_path / "set"))
    assert [(s["rows"], [(p["row"], p["kind"]) for p in s["problems"]]) for s in report["sources"]] == [
        (20, []),
        (11, [(11, "leak")]),
    ]
    assert "train.jsonl, row 8" in report["sources"][1]["problems"][0]["message"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data file"):
        inspect(str(tmp_path / "no.jsonl"), None)


def test_columns(write):
    path = write("c.jsonl", [{"q": "a", "a": "b"}, {"q": "a"}])
    report = inspect({"path": path, "columns": {"prompt": "q", "completion": "a"}}, None)
    assert report["sources"][0]["format"] == "prompt_completion"
    assert found(report) == [(2, "a", "missing_field")]


def test_token_lengths_and_printing(write, tokenizer, stand_in):
    stand_in(tokenizer)
    rows = [{"prompt": "hi", "completion": "yo"}, {"prompt": "hi", "completion": "yoyo"}, {"prompt": "a"}]
    report = inspect(write("a.jsonl", rows), "m")
    tokens = report["tokens"]
    assert tokens.pop("histogram") == {"edges": [14, 15, 16, 17], "counts": [1, 0, 1]}
    assert tokens == {
        "model": "m",
        "context": None,
        "max_length": None,
        "limit": None,
        "rows": 2,
        "sampled": 2,
        "examples": 2,
        "min": 14,
        "median": 15.0,
        "p95": 16,
        "max": 16,
        "total": 30,
        "scored": 8,
        "scored_share": 8 / 30,
        "over": 0,
        "over_share": 0.0,
        "notices": [],
    }
    tokens["histogram"] = {"edges": [14, 15, 16, 17], "counts": [1, 0, 1]}
    out = io.StringIO()
    print_inspection(report, Console(file=out, width=200))
    assert "3 rows, prompt_completion (has prompt and completion), 1 problem" in out.getvalue()
    assert 'field "completion" is missing' in out.getvalue()
    assert "2 examples of 2 rows, 14–16 long" in out.getvalue()
    nothing = inspect(write("b.jsonl", [{"prompt": "a", "completion": ""}]), "m")
    assert "nothing would be scored" in nothing["tokens"]["error"]


def test_answers_that_a_limit_cuts(write, tokenizer, stand_in):
    stand_in(tokenizer)
    # <|im_start|>u\nhi<|im_end|>\n<|im_start|>a\n is 10 tokens; then the answer, and its <|im_end|>
    rows = [
        {"prompt": "hi", "completion": "yes"},  # its end is the 14th token
        {"prompt": "hi", "completion": "yesyes"},  # its end is the 17th
        {"prompt": "hi" * 5, "completion": "yo"},  # begins with the 19th
    ]
    path = write("a.jsonl", rows)
    assert found(inspect(path, "m", 14)) == [(2, None, "answer_cut"), (3, None, "answer_beyond")]
    assert found(inspect(path, "m", 19)) == [(3, None, "answer_cut")]
    assert found(inspect(path, "m", 21)) == []
    assert found(inspect(path, "m", 14, limits=False)) == []
    cut = inspect(path, "m", 14)["sources"][0]["problems"][0]
    assert cut["message"] == "3 of the answer's 7 tokens are beyond the limit of 14 (the row has 18)."
    assert inspect(path, "m", 14)["tokens"]["over"] == 3  # of the first only the line break after its end


def test_rows_that_a_template_refuses(write, make_tokenizer, stand_in):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    stand_in(make_tokenizer(template))
    said = [
        "user assistant",
        "system user assistant",
        "user assistant user assistant",
        "system user assistant user assistant",
    ]
    rows = [
        {"messages": [{"role": r, "content": f"{r} {'abcd'[i]}"} for r in roles.split()]}
        for i, roles in enumerate(said)
    ]
    report = inspect(write("m.jsonl", rows), "m")
    refused = [p for p in report["sources"][0]["problems"] if p["kind"] == "template_refused"]
    assert [p["row"] for p in refused] == [2, 4]
    assert "no system turns" in refused[0]["message"]
    assert report["tokens"]["examples"] == 2


def test_a_template_that_had_to_be_stopped_stops_the_inspection(write, make_tokenizer, stand_in):
    stand_in(make_tokenizer("{% for m in messages %}{{ m.content.__class__.__mro__ }}{% endfor %}"))
    path = write("m.jsonl", [{"prompt": f"Say {i}.", "completion": f"{i}."} for i in range(3)])
    with pytest.raises(InputError, match="was stopped") as stopped:
        inspect(path, "m")
    assert "row 1" in str(stopped.value)


def test_special_tokens_of_the_model_itself(write, tokenizer, stand_in):
    stand_in(tokenizer)  # whose special tokens include <unk>, which elsewhere may be text
    rows = [{"prompt": "hi", "completion": c} for c in ("yes", "a <unk> b", "no", "a <|im_end|> b", "<bos>")]
    path = write("a.jsonl", rows)
    assert [p[::2] for p in found(inspect(path, "m"))] == [(r, "special_token") for r in (2, 4, 5)]
    assert inspect(path, "m")["sources"][0]["problems"][0]["message"] == '"<unk>" is a special token of this model.'


def test_a_sample_is_said_to_be_one(write, tokenizer, stand_in):
    stand_in(tokenizer)
    rows = [{"prompt": "hi", "completion": "yo" * (1 + i % 5)} for i in range(60)]
    report = inspect(write("a.jsonl", rows), "m", sample=25)
    assert (report["tokens"]["rows"], report["tokens"]["sampled"], report["tokens"]["examples"]) == (60, 25, 25)
    assert inspect(write("a.jsonl", rows), "m", sample=25) == report
    out = io.StringIO()
    print_inspection(report, Console(file=out, width=200))
    assert "25 examples of a sample of 25 of 60 rows" in out.getvalue()


def test_what_is_printed(write):
    good = [{"instruction": f"Say {i}.", "output": f"It is {i}, said slowly."} for i in range(8)]
    path = write("a.jsonl", [*good, *good[:5], {"instruction": "[bold]x[/]", "output": "a {{name}} of [red]note[/]"}])
    out = io.StringIO()
    print_inspection(inspect(path), Console(file=out, width=300))
    lines = [line.rstrip() for line in out.getvalue().replace(path, "a.jsonl").splitlines()]
    assert lines[0] == "a.jsonl: 14 rows, alpaca (has instruction and output), 6 problems"
    at = lines.index("  warning duplicate (5): rows that repeat another")
    assert lines[at + 1] == '          row 9: the row says exactly what row 1 says.  "Say 0. It is 0, said slowly."'
    assert lines[at + 4] == "          … and 2 more (--json or --csv lists them)"
    assert lines[at + 5] == "          → `tunesmith data prepare` keeps one of each (step exact_duplicates)."
    assert any('"a {{name}} of [red]note[/]"' in line for line in lines)  # nothing in a row is markup
    assert (
        lines[-1] == "next: tunesmith data prepare a.jsonl --output prepared  (steps that help here: exact_duplicates)"
    )


def test_a_count_above_none_is_a_bar():
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"


def test_real_set(shared):
    path = shared / "data" / "instruction" / "stanford_alpaca_5000"
    report = inspect(str(path), str(shared / "models" / "tinystories-656k-llama"))
    empty = [(row, field) for row, field, kind in found(report) if kind == "empty_answer"]
    assert empty == [(2336, "output"), (4659, "output")]
    assert report["tokens"]["examples"] == 4998
    rows = {p["row"] for p in report["sources"][0]["problems"] if p["kind"] not in ("answer_cut", "answer_beyond")}
    assert len(rows) < 5000 * 0.01


def test_real_sets_of_other_formats(shared):
    folder = shared / "data"
    kto = inspect(str(folder / "preference" / "llamafactory" / "kto_en_demo.json"))["sources"][0]
    assert [p["row"] for p in kto["problems"] if p["kind"] == "mojibake"] == [246, 260]
    assert sum(kto["labels"]["verdict"].values()) == 300
    tools = inspect(str(folder / "instruction" / "llamafactory" / "reason_tool_use_demo_50.jsonl"))["sources"][0]
    assert not {"orphan_tool", "unanswered_call", "unknown_tool", "role_order"} & set(tools["counts"])


def test_no_excerpt_shows_personal_data_or_secrets(write):
    key, mail, card = "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t", "anna.k.meier77@posteo.de", "4556 7375 8689 9855"
    said = f"{mail} pays {{{{name}}}} with {card}; {key} <|im_end|> caf\ufffd a\u200bb As an AI language model, {mail}"
    rows = [
        {"instruction": f"My key is {key} and {mail}", "output": said},
        {"instruction": f"My key is {key} and {mail}", "output": said},
        {"instruction": f"My key is {key} and {mail}", "output": ""},
        {"instruction": f"{'x' * 40} {key} {card}", "output": [mail, key]},
    ]
    report = inspect(write("a.jsonl", rows))
    assert report["sources"][0]["counts"].keys() >= {
        "personal_data",
        "secret",
        "duplicate",
        "placeholder",
        "refusal",
        "wrong_type",
        "empty_answer",
    }
    out = io.StringIO()
    print_inspection(report, Console(file=out, width=200))
    for shown in (json.dumps(report, ensure_ascii=False), out.getvalue()):
        assert not [piece for piece in (key[:14], key[-12:], "anna.k", "posteo", "4556", "9855") if piece in shown]
    assert "the text holds: email" in out.getvalue()


def test_nothing_in_a_row_acts_on_the_terminal(write):
    rows = [{"instruction": "a\x1b[31m", "output": "", "la\x1bbel": "x"}] * 3 + [
        {"instruction": "b\r\x9b2J", "output": "{{na\x1bme}} \x1b]0;t\x07"}
    ]
    out = io.StringIO()
    print_inspection(inspect(write("a.jsonl", rows)), Console(file=out, width=200))
    assert not {"\x1b", "\x9b", "\r", "\x07"} & set(out.getvalue())
