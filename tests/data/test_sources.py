"""Files of every kind give the same rows; what is wrong is said in one sentence with file, row and remedy."""

import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.records import Chat, Preference, Prompt, Text, Verdict
from tunesmith.data.sources import check_objective, load, parse
from tunesmith.errors import InputError

ROWS = [{"instruction": f"say {i}", "input": "", "output": f'{i} é, "q"\nnext'} for i in range(4)]


def answers(loaded):
    return [r.messages[-1]["content"] for r in loaded.records]


def test_every_kind_of_file_reads_the_same(write, tmp_path):
    import csv

    with open(tmp_path / "d.csv", "w", newline="", encoding="utf-8-sig") as f:
        writer = csv.DictWriter(f, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    files = [
        write("d.json", ROWS),
        write("e.json", {"data": ROWS, "version": 1}),
        write("f.json", {"note": "n", "examples": ROWS}),
        write("lines.json", "\n".join(map(json.dumps, ROWS))),
        write("d.jsonl", ROWS),
        write("list.jsonl", json.dumps(ROWS)),
        str(tmp_path / "d.csv"),
        str(tmp_path / "d.parquet"),
    ]
    for file in files:
        loaded = load(file)
        assert answers(loaded) == [r["output"] for r in ROWS], file
        assert [r.origin.row for r in loaded.records] == [1, 2, 3, 4]
        assert loaded.files[0].format == "alpaca"
        assert "alpaca (has instruction and output)" in loaded.notices[0]


def test_jsonl_rows_are_lines_and_line_separators_inside_strings_are_text(write):
    path = write("d.jsonl", '{"text": "a\u2028b"}\n\n{"text": "c"}\n')
    assert [(r.text, r.origin.row) for r in load(path).records] == [("a\u2028b", 1), ("c", 3)]


def test_text_files_and_lists_of_strings(write):
    assert load(write("a.txt", "one\ntwo")).records[0].text == "one\ntwo"
    assert [r.text for r in load(write("s.json", ["x", "y"])).records] == ["x", "y"]


def test_folder_of_files(write, tmp_path):
    write("data/b.jsonl", [{"text": "2"}])
    write("data/a.jsonl", [{"text": "1"}])
    write("data/README.md", "not data")
    write("data/.hidden.jsonl", "broken")
    assert [r.text for r in load(str(tmp_path / "data")).records] == ["1", "2"]


def test_folder_with_splits_reads_the_one_asked_for(write, tmp_path):
    write("data/train-00.jsonl", [{"text": "1"}])
    write("data/test-00.jsonl", [{"text": "2"}])
    loaded = load(str(tmp_path / "data"))
    assert [r.text for r in loaded.records] == ["1"]
    assert "left out: test-00.jsonl" in loaded.notices[0]
    assert [r.text for r in load({"path": str(tmp_path / "data"), "split": "test"}).records] == ["2"]


def test_splits_go_by_many_names(write, tmp_path):
    """val is the validation split, and what is beside it and named after no split is for training."""
    write("data/rows.jsonl", [{"text": "1"}])
    write("data/val.jsonl", [{"text": "2"}])
    assert [r.text for r in load(str(tmp_path / "data")).records] == ["1"]
    assert [r.text for r in load({"path": str(tmp_path / "data"), "split": "validation"}).records] == ["2"]


def test_folder_of_texts(write, tmp_path):
    write("t/a.txt", "1")
    write("t/b.md", "2")
    assert [r.text for r in load(str(tmp_path / "t")).records] == ["1", "2"]


def test_columns_and_stated_format(write):
    path = write("d.jsonl", [{"ask": "a", "reply": "b", "output": "z"}])
    loaded = load({"path": path, "columns": {"prompt": "ask", "completion": "reply"}})
    assert [m["content"] for m in loaded.records[0].messages] == ["a", "b"]
    loaded = load({"path": write("e.jsonl", [{"text": "t", "instruction": "i", "output": "o"}]), "format": "text"})
    assert isinstance(loaded.records[0], Text)
    assert loaded.files[0].why == "stated by you"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("e.jsonl", "", "e.jsonl: the file is empty."),
        ("e.json", "[]", "e.json: the file holds no rows."),
        ("e.csv", "text\n", "e.csv: the file holds no rows."),
        ("b.jsonl", '{"text": "a"}\n{"text": "b"\n', "b.jsonl, row 2: line 2 is broken JSON"),
        ("b.json", '[{"text": "a"},\n{"text": "b"},\n{"text": c}]', "b.json, row 3: line 3 of the file is broken JSON"),
        ("b.json", '[{"text": "a"},\n{"text": "b"}', "b.json, row 3: line 2 of the file is broken JSON"),
        ("n.jsonl", '{"text": "a"}\n5\n', "n.jsonl, row 2: the row is a number, expected an object"),
        ("n.json", '{"a": 1}', "n.json: the file holds an object with the fields a, expected a list of rows"),
        ("u.jsonl", '{"text": "a"}\n{"text": "é"}'.encode("latin-1"), "u.jsonl, row 2: line 2 is not UTF-8 (byte 0xe9)"),
        ("c.csv", "text,b\nx,1\ny\n", "c.csv, row 2: line 3 has 1 values, the header has 2 (text, b)."),
        ("p.parquet", b"PAR1 no", "p.parquet: the file is no readable Parquet"),
        ("m.jsonl", '{"text": "a"}\n{"txt": "b"}\n', 'm.jsonl, row 2: field "text" is missing. Did you mean "txt"?'),
        ("x.jsonl", '{"text": "a"}\n{"prompt": "b", "completion": "c"}\n', "row 2: this row is of the format prompt_completion"),
    ],
)  # fmt: skip
def test_broken_files(write, name, content, sentence):
    path = write(name, content)
    with pytest.raises(InputError) as e:
        load(path)
    assert sentence in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["h.jsonl", "h.json"])
def test_half_a_character_is_refused_with_its_row(write, name):
    whole = ['{"text": "\\ud83d\\ude00"}', '{"text": "\\\\ud83d is a backslash and letters"}', '{"text": "é 😀"}']
    rows = [r.text for r in load(write(f"whole-{name}", "\n".join(whole))).records]
    assert rows == ["😀", "\\ud83d is a backslash and letters", "é 😀"]
    for half in ("\\ud83d", "\\ude00", "\\ud83d\\ud83d\\ude00", "\\ud83d\\ude00\\ude00"):
        nested = f'{{"text": "a", "more": [{{"deep": "x {half} y"}}]}}'
        with pytest.raises(InputError, match=r"row 4: \\ud(83d|e00) is half of a character"):
            load(write(f"{half[2:6]}-{name}", "\n".join([*whole, nested, whole[0]])))


def test_missing_files_name_the_nearest(write, tmp_path, monkeypatch):
    write("support.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match=r'no data file .*suport.jsonl. Did you mean "support.jsonl"\?'):
        load(str(tmp_path / "suport.jsonl"))
    monkeypatch.chdir(tmp_path)
    write("data/a.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match=r"no data file data/train"):
        load("data/train")  # beside a local folder of that name it is no hub id
    with pytest.raises(InputError, match=r"no data file tunesmith reads; known endings: \.json"):
        load(write("x.xlsx", "x"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data files"):
        load("empty")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"path": "a", "wieght": 2}, 'unknown key "wieght". Did you mean "weight"?'),
        ({"weight": 2}, 'needs "path"'),
        ({"path": "a", "weight": 0}, '"weight" is 0, expected a number above 0'),
        ({"path": "a", "weight": "2"}, "\"weight\" is '2'"),
        ({"path": "a", "format": "alpacca"}, 'no format "alpacca". Did you mean "alpaca"?'),
        (
            {"path": "a", "columns": {"promt": "x"}},
            'columns names "promt", which no format reads. Did you mean "prompt"?',
        ),
        ({"path": "a", "columns": ["x"]}, '"columns" maps'),
        ({"path": "a", "as": "caht"}, 'there is no kind of record "caht" (key "as"). Did you mean "chat"?'),
        ({"path": "a", "labels": ["x"]}, '"labels" says what each label is called'),
        ({"path": "a", "licence": 4}, '"licence" is 4, expected words'),
        ({"path": "a", "name": ""}, "\"name\" is '', expected the config"),
        ({"path": "a", "split": 3}, '"split" is 3, expected a name such as train'),
        (5, "expected a path or a mapping"),
        ([], "data names no source"),
    ],
)
def test_wrong_entries(entry, sentence):
    with pytest.raises(InputError) as e:
        parse(entry if isinstance(entry, list) else [entry])
    assert sentence in str(e.value)


def test_missing_column_names_the_nearest(write):
    path = write("d.jsonl", [{"question": "a", "reply": "b"}])
    with pytest.raises(
        InputError, match=r'column "qestion" \(named in columns\) is missing. Did you mean "question"\?'
    ):
        load({"path": path, "columns": {"prompt": "qestion"}})


def test_hub_without_the_extra_and_offline(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'tunesmith\[hub\]'"):
        load("org/name")

    class Offline:
        @staticmethod
        def load_dataset(name, config, split, streaming):
            raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", Offline)
    with pytest.raises(InputError, match=r'"org/name" is no local file, and the hub did not give it .*no route\.') as e:
        load("org/name")
    assert "\n" not in str(e.value)


class FakeHub:
    """Stands for `datasets`: gives rows that tell how they were asked for, and counts how many were taken."""

    def __init__(self, rows=1000):
        self.rows, self.taken = rows, 0

    def load_dataset(self, name, config, split, streaming):
        rows = self.made(f"{name} {config} {split} {'streamed' if streaming else 'whole'}")
        return rows if streaming else list(rows)

    def made(self, text):
        for i in range(self.rows):
            self.taken += 1
            yield {"text": f"{text} {i}"}


@pytest.mark.parametrize(
    ("entry", "first", "name"),
    [
        ({"path": "org/name", "split": "test"}, "org/name None test whole 0", "org/name@test"),
        ("org/name:main@test", "org/name main test whole 0", "org/name:main@test"),
        ({"path": "org/name", "name": "main"}, "org/name main train whole 0", "org/name:main"),
        ("org/name:main", "org/name main train whole 0", "org/name:main"),
        ("org/name[10:20]", "org/name None train whole 10", "org/name"),
        ({"path": "org/name", "split": "test[-1:]"}, "org/name None test whole 999", "org/name@test"),
    ],
)
def test_hub_rows(monkeypatch, entry, first, name):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub())
    monkeypatch.setattr("tunesmith.model.loading.unreachable", lambda name: True)
    record = load(entry).records[0]
    assert (record.text, record.origin.file) == (first, name)


def test_the_first_rows_of_a_hub_set_are_streamed_and_no_others_fetched(monkeypatch):
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr("tunesmith.model.loading.unreachable", lambda name: False)
    records = load("org/name[:5]").records
    assert [r.text for r in records] == [f"org/name None train streamed {i}" for i in range(5)]
    assert [r.origin.row for r in records] == [1, 2, 3, 4, 5]
    assert hub.taken == 5


def test_a_hub_set_of_several_configs_asks_for_one(monkeypatch):
    class Several:
        @staticmethod
        def load_dataset(name, config, split, streaming):
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setitem(sys.modules, "datasets", Several)
    with pytest.raises(InputError, match=r"Config name is missing\. Say which one you mean: org/name:CONFIG\."):
        load("org/name")
    with pytest.raises(InputError, match=r'its config is "a", but name says "b"; keep one'):
        load({"path": "org/name:a", "name": "b"})


def test_objective_that_cannot_read_the_rows(write):
    loaded = load(write("t.jsonl", [{"text": "a"}]))
    check_objective(loaded, "pretrain", (Text, Chat))
    with pytest.raises(
        InputError, match=r"t.jsonl holds text rows; the objective sft reads chat\. .*--objective pretrain"
    ):
        check_objective(loaded, "sft", (Chat,))


PREFERENCE = {"prompt": "why?", "chosen": "so", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "reads", "remedy"),
    [
        (PREFERENCE, (Chat,), "Read it as one with `as: chat` in its data entry (the best answer to each prompt)."),
        (PREFERENCE, (Verdict,), "`as: verdict` in its data entry (its best answers good, the others bad)."),
        (
            {"prompt": "why?", "completion": "so", "label": True},
            (Chat,),
            "`as: chat` in its data entry (its good answers).",
        ),
        ({"prompt": "why?", "completion": "so"}, (Prompt,), "`as: prompt` in its data entry (its last answers as"),
        ({"prompt": "why?", "completion": "so"}, (Preference,), "Give rows with prompt, chosen and rejected."),
        (
            {"prompt": "why?", "completion": "so"},
            (Verdict,),
            "Give rows with prompt, completion and a true or false label.",
        ),
        ({"text": "so"}, (Preference,), "reads preference. Give rows with prompt, chosen and rejected."),
    ],
)
def test_rows_an_objective_cannot_read_come_with_a_remedy(write, row, reads, remedy):
    loaded = load(write("rows.jsonl", [row]))
    with pytest.raises(InputError) as e:
        check_objective(loaded, "some", reads)
    assert remedy in str(e.value)
    assert "rows.jsonl holds" in str(e.value)


def test_rows_read_as_another_kind(write):
    path = write("rows.jsonl", [PREFERENCE, PREFERENCE])
    chats = load({"path": path, "as": "chat", "licence": "CC BY 4.0"})
    assert [[m["content"] for m in r.messages] for r in chats.records] == [["why?", "so"]] * 2
    assert (chats.kinds, chats.sources[0].licence) == ({"chat"}, "CC BY 4.0")
    assert "2 rows of the format preference (has chosen and rejected with prompt), read as 2 chat" in chats.notices[0]
    check_objective(chats, "sft", (Chat,))
    verdicts = load({"path": path, "as": "verdict"})
    assert [(r.good, r.origin.row) for r in verdicts.records] == [(True, 1), (False, 1), (True, 2), (False, 2)]
    assert [list(load({"path": path, "as": kind}).kinds) for kind in ("prompt", "preference")] == [
        ["prompt"],
        ["preference"],
    ]
    with pytest.raises(InputError, match=r"rows\.jsonl, row 1: a preference row cannot be read as text; give rows"):
        load({"path": path, "as": "text"})


def test_labels_are_called_as_asked(write):
    path = write("s.jsonl", [{"text": "fine", "label": 1}, {"text": "bad", "label": 0}])
    loaded = load({"path": path, "labels": {0: "negative", 1: "positive"}})
    assert [r.messages[1]["content"] for r in loaded.records] == ["positive", "negative"]
    with pytest.raises(
        InputError, match=r's\.jsonl, row 2: field "label" is 0, which labels does not name \(it names 1\)'
    ):
        load({"path": path, "labels": {1: "positive"}})


def test_extra_fields_are_kept_and_said(write):
    loaded = load(write("t.jsonl", [{"prompt": "a", "completion": "b", "category": "c"}]))
    assert loaded.records[0].extra == {"category": "c"}
    assert "not in the text: category" in loaded.notices[0]


def test_a_hundred_thousand_rows_in_seconds(write):
    row = json.dumps(ROWS[0] | {"output": "word " * 60})
    path = write("big.jsonl", (row + "\n") * 100_000)
    start = time.perf_counter()
    assert len(load(path).records) == 100_000
    assert time.perf_counter() - start < 30  # about 2 s on one core


@pytest.mark.parametrize(
    ("path", "name", "rows"),
    [
        ("rasbt/instruction-data.json", "alpaca", 1100),
        ("stanford_alpaca_5000", "alpaca", 5000),
        ("llamafactory/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("llamafactory/v1_sft_demo.jsonl", "messages", 500),
        ("llamafactory/reason_tool_use_demo_50.jsonl", "messages", 50),
        ("llamafactory/c4_demo.jsonl", "text", 300),
        ("fastchat/dummy_conversation.json", "sharegpt", 500),
        ("litgpt_fixtures/dolly.json", "dolly", 12),
        ("litgpt_fixtures/longform_train.json", "prompt_completion", 17),
        ("open_instruct/sft_sample.jsonl", "messages", 100),
    ],
)
def test_real_sets(shared, path, name, rows):
    loaded = load(str(shared / "data" / "instruction" / path))
    assert ({f.format for f in loaded.files}, len(loaded.records)) == ({name}, rows)


def test_real_tool_calls_are_read(shared):
    loaded = load(str(shared / "data" / "instruction" / "llamafactory" / "glaive_toolcall_en_demo.json"))
    first = loaded.records[0]
    calls = [m["tool_calls"][0]["function"]["name"] for m in first.messages if "tool_calls" in m]
    assert calls == ["search_recipes"]
    assert first.tools[0]["function"]["name"] == "search_recipes"
