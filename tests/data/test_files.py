"""Rows come out of files one by one, whatever their kind, the same as all at once; places, slices, and all that may be wrong with them."""

import csv
import gzip
import json
import random
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data import files
from tunesmith.data.formats._common import RowError
from tunesmith.data.places import Place
from tunesmith.data.readers import csv_rows, window
from tunesmith.data.sources import load
from tunesmith.errors import InputError

ROWS = [{"text": f"row {i} é\u2028😀", "more": f'a, "b"\t{i}\r\nnext'} for i in range(30)]


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()


def arrow(path, rows, kind, batch=7):
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, batch)


def table(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def broken_at(content):
    """Where and why json.loads cannot read it; None where it can."""
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return f"line {error.lineno} of the file is broken JSON ({error.msg}, column {error.colno})"
    return None


@pytest.fixture
def every(tmp_path):
    """A folder of the same rows in files of every kind."""
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1, ensure_ascii=False))
    (tmp_path / "data.json").write_text(json.dumps({"v": [{"x": 1}], "data": ROWS, "end": {}}, ensure_ascii=False))
    (tmp_path / "only.json").write_text(json.dumps({"v": 1, "list": ROWS}, indent=2))
    table(tmp_path / "a.csv", ROWS)
    table(tmp_path / "semicolons.csv", ROWS, ";")
    table(tmp_path / "a.tsv", ROWS, "\t")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=11)
    arrow(tmp_path / "file.arrow", ROWS, "file")
    arrow(tmp_path / "stream.arrow", ROWS, "stream")
    for path in sorted(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        (tmp_path / f"{path.name}.zst").write_bytes(zstd(path.read_bytes()))
    parts = [jsonl(ROWS[:10]), jsonl(ROWS[10:])]
    (tmp_path / "parts.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))  # as `cat` joins them
    (tmp_path / "parts.jsonl.zst").write_bytes(b"".join(map(zstd, parts)))
    return tmp_path


def test_every_kind_of_file_streams_the_same_rows(every):
    found = sorted(every.iterdir())
    assert len(found) == 32
    for path in found:
        assert list(files.stream(path)) == [(i, row) for i, row in enumerate(ROWS, 1)], path.name


def test_a_json_list_is_read_through_a_small_window_as_json_loads_reads_it(tmp_path, monkeypatch):
    """Chunks of seven bytes cut every token there is; a broken list breaks at the very place that json.loads names."""
    monkeypatch.setattr(window, "CHUNK", 7)
    rng = random.Random(0)
    texts = ["", "é😀", 'a"b\\', "\n\t", "\u2028", "x" * 30, "[{]},:"]

    def value(depth):
        kind = rng.randrange(6 if depth < 3 else 4)
        if kind == 4:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 5:
            return {rng.choice(texts): value(depth + 1) for _ in range(rng.randrange(4))}
        return [rng.choice(texts), rng.randrange(-(10**6), 10**9), rng.random() * 1e-9, rng.choice([True, None])][kind]

    path = tmp_path / "x.json"
    broken = 0
    for _ in range(60):
        rows = [{"r": value(0)} for _ in range(rng.randrange(1, 7))]
        content = json.dumps(rows, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
        path.write_text(json.dumps({"v": [value(0)], "data": rows, "w": value(0)}, indent=rng.choice([None, 1])))
        assert list(files.stream(path)) == list(enumerate(rows, 1))
        path.write_text(content)
        assert list(files.stream(path)) == list(enumerate(rows, 1))
        for at in rng.sample(range(1, len(content)), 8):
            for changed in (content[:at], content[:at] + "@" + content[at:]):
                path.write_text(changed)
                wrong = broken_at(changed)
                if wrong is not None:
                    *whole, last = files.stream(path)
                    assert whole == list(enumerate(rows, 1))[: len(whole)]
                    assert wrong in str(last)
                    broken += 1
    assert broken > 500


def test_rows_that_are_broken_stand_among_the_others(tmp_path):
    path = tmp_path / "b.jsonl"
    lines = [
        b'{"text": "1"}',
        b'{"text": ',
        b"",
        b'{"text": "\xff"}',
        b"7",
        b'{"text": "\\ud800"}',
        b'  {"text": "7"}  ',
    ]
    path.write_bytes(b"\n".join(lines))
    found = list(files.stream(path))
    assert [item if isinstance(item, tuple) else (item.origin.row, item.kind) for item in found] == [
        (1, {"text": "1"}),
        (2, "broken_json"),
        (4, "not_utf8"),
        (5, "not_object"),
        (6, "half_character"),
        (7, {"text": "7"}),
    ]
    read = files.read(path)
    assert (len(read.rows), len(read.broken)) == (2, 4)


def test_a_stream_takes_no_more_of_a_file_than_it_needs(tmp_path):
    """The first rows of a file whose end is broken, or missing, are read all the same."""
    lines = jsonl(ROWS * 2000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-100])
    (tmp_path / "a.json").write_bytes(json.dumps(ROWS * 2000).encode()[:-100])
    for name in ("a.jsonl.gz", "a.json"):
        rows = files.stream(tmp_path / name)
        assert [next(rows) for _ in range(30)] == list(enumerate(ROWS, 1))
        assert [r.text for r in load(f"{tmp_path / name}[:2]").records] == [ROWS[0]["text"], ROWS[1]["text"]]


@pytest.mark.parametrize(
    ("cut", "rows"),
    [
        ("[:5]", range(1, 6)),
        ("[5:8]", range(6, 9)),
        ("[28:]", range(29, 31)),
        ("[25:99]", range(26, 31)),
        ("[-3:]", range(28, 31)),
        ("[:-28]", range(1, 3)),
        ("[-5:-3]", range(26, 28)),
        ("[:10%]", range(1, 4)),
        ("[10%:20%]", range(4, 7)),
        ("[95%:]", range(29, 31)),
        ("[-10%:]", range(28, 31)),
        ("[:]", range(1, 31)),
    ],
)
def test_slices_are_pythons_of_the_rows(every, cut, rows):
    for name in ("a.jsonl", "a.json", "a.csv.gz", "a.parquet", "stream.arrow"):
        loaded = load(f"{every / name}{cut}")
        assert [r.origin.row for r in loaded.records] == list(rows)
        assert {r.origin.file for r in loaded.records} == {str(every / name)}
        assert f"{name}{cut}: {len(rows)} rows" in loaded.notices[0]
    by_split = load({"path": str(every / "a.jsonl"), "split": f"train{cut}"})
    assert [r.origin.row for r in by_split.records] == list(rows)


def test_columns_by_position_are_those_of_a_file_without_a_header(write):
    path = write("h.csv", '3,"Wall St., ""up"""\n4,two\n')
    loaded = load({"path": path, "columns": {"label": 0, "text": 1}, "labels": {3: "world", 4: "sports"}})
    said = [[m["content"] for m in r.messages] for r in loaded.records]
    assert said == [['Wall St., "up"', "world"], ["two", "sports"]]
    assert [r.origin.row for r in loaded.records] == [1, 2]
    header = write("pandas.csv", "0,1\n3,one\n")  # what pandas writes above columns that have no names
    assert len(load({"path": header, "columns": {"label": "0", "text": "1"}}).records) == 1
    with pytest.raises(InputError, match=r"h\.csv, row 1: column \"2\" \(named in columns\) is missing"):
        load({"path": path, "columns": {"text": 2}})
    with pytest.raises(InputError, match=r"row 2: line 2 has 1 values, the first line has 2\."):
        load({"path": write("w.csv", "3,one\n4\n"), "columns": {"label": 0, "text": 1}})


@pytest.mark.parametrize("line", ["3,Wall,Wall\n", f"3,{'word ' * 50}\n"])
def test_a_first_line_that_is_no_header_is_named_with_the_remedy(write, line):
    with pytest.raises(InputError, match=r"the first line looks like a row.* which column is which by position"):
        load(write("h.csv", line + "4,b,c\n"))


def test_quotes_in_the_text_of_a_tsv_stay(write):
    """Many TSV files have no quotes around cells; one that begins with a quotation is text, not a cell that goes on."""
    lines = ["question\tanswer", 'Why?\t"Gamey" is a word', '"A Tale" is what?\t"a novel', 'Who?\t"me"']
    rows = files.read(Path(write("q.tsv", "\n".join(lines)))).rows
    assert [row for _, row in rows] == [
        {"question": "Why?", "answer": '"Gamey" is a word'},
        {"question": '"A Tale" is what?', "answer": '"a novel'},
        {"question": "Who?", "answer": '"me"'},
    ]


def test_a_cell_that_never_ends_is_no_text(write, monkeypatch):
    with pytest.raises(
        InputError,
        match=r"u\.csv, row 1: line 3 is broken CSV \(unexpected end of data; a quote is opened after line 1 and not closed\)",
    ):
        load(write("u.csv", 'text,b\n"never closed,1\nx,2\n'))
    monkeypatch.setattr(csv_rows, "LARGEST_CELL", 50)
    with pytest.raises(InputError, match=r"row 1: line 2 is broken CSV \(field larger than field limit \(50\)\)"):
        load(write("l.csv", f"text,b\n{'x' * 60},2\n"))
    csv.field_size_limit(1 << 27)


def test_what_is_wrong_with_a_value_of_arrow_names_the_row(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"good"]).view(pa.string())
    arrow_table = pa.table({"text": texts})
    with pa.OSFile(str(tmp_path / "u.arrow"), "wb") as sink, pa.ipc.new_file(sink, arrow_table.schema) as writer:
        writer.write_table(arrow_table)
    one, two, three = files.stream(tmp_path / "u.arrow")
    assert (one, three) == ((1, {"text": "good"}), (3, {"text": "good"}))
    assert isinstance(two, RowError)
    assert "u.arrow, row 2: the row holds a value that cannot be read" in str(two)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a.jsonl.gz", "a.jsonl.gz: the file cannot be unpacked (Truncated compressed stream)."),
        ("a.jsonl.zst", "a.jsonl.zst: the file cannot be unpacked (Truncated compressed stream)."),
        ("a.parquet", "a.parquet: the file is no readable Parquet"),
        ("file.arrow", "file.arrow: the file is no readable Arrow"),
        ("stream.arrow", "stream.arrow: the file is no readable Arrow (its end is missing: the file is not whole)."),
        ("a.parquet.gz", "a.parquet.gz: the file cannot be unpacked (Truncated compressed stream)."),
    ],
)
def test_files_that_are_not_whole(every, name, sentence):
    cut_in_half(every / name)
    with pytest.raises(InputError) as e:
        load(str(every / name))
    assert sentence in str(e.value)
    assert "\n" not in str(e.value)


def test_a_stream_cut_between_two_batches_is_not_whole(tmp_path):
    """Arrow's reader takes it for a shorter one: half of the rows would be missing without a word."""
    rows = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows[:10])
        end = sink.tell()
        writer.write_table(rows[10:])
    assert len(load(str(tmp_path / "s.arrow")).records) == 30
    (tmp_path / "s.arrow").write_bytes((tmp_path / "s.arrow").read_bytes()[:end])
    assert len(pa.ipc.open_stream(str(tmp_path / "s.arrow")).read_all()) == 10
    with pytest.raises(InputError, match="its end is missing"):
        load(str(tmp_path / "s.arrow"))


def test_damaged_compression_is_named(every):
    data = bytearray((every / "a.jsonl.gz").read_bytes())
    data[-6] ^= 255  # its checksum
    (every / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: the file cannot be unpacked \(zlib inflate failed"):
        load(str(every / "a.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.zip", b"PK\x03\x04", "x.zip is an archive (.zip): unpack it and name the folder."),
        ("x.jsonl", b"PK\x03\x04", "x.jsonl: the file is a zip archive or an Excel sheet"),
        ("x.jsonl.gz", b"{}", "x.jsonl.gz: the file is not compressed by gzip."),
        ("x.jsonl.zst", gzip.compress(b"{}"), "x.jsonl.zst: the file is not compressed by zstd."),
        ("x.jsonl.gz", b"", "x.jsonl.gz: the file is empty."),
        ("x.jsonl.gz", gzip.compress(b" \n"), "x.jsonl.gz: the file is empty."),
        ("x.csv.zst", zstd(b"a,b\n"), "x.csv.zst: the file holds no rows."),
        ("x.json.gz", gzip.compress(b"[]"), "x.json.gz: the file holds no rows."),
        ("x.parquet", b"", "x.parquet: the file is no readable Parquet"),
        ("x.arrow", b"", "x.arrow: the file is no readable Arrow (it is empty)."),
        ("x.txt", b" \n", "x.txt: the file is empty."),
        ("x.gz", b"\x1f\x8b", "x.gz does not say what is compressed; name it so, for example x.jsonl.gz."),
        ("x.tar.gz", b"\x1f\x8b", "x.tar.gz is an archive (.tar): unpack it and name the folder."),
        ("x.jsonl.bz2", b"BZh", "x.jsonl.bz2 is no data file tunesmith reads; known endings: .json"),
        ("x.json", b'{"data": [\n{"text": "a"},\n{"text" "b"}]}', "x.json, row 2: line 3 of the file is broken JSON"),
        (
            "x.json",
            b'{"data": [{"text": "a"}],\n"b": tru}',
            "x.json, row 2: line 2 of the file is broken JSON (Expecting value",
        ),
        ("x.json", b'{"data": [{"text": "a"}]\n}\n}', "x.json, row 2: line 3 of the file is broken JSON (Extra data"),
        ("x.json", b'{"b": [{"text": "a"}],\n"c" 1}', "x.json: line 2 of the file is broken JSON (Expecting ':'"),
    ],
)
def test_no_data_in_a_file(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as e:
        load(str(tmp_path / name))
    assert sentence in str(e.value)
    assert "\n" not in str(e.value)


def test_a_zip_of_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.jsonl", "w") as z:
        z.writestr("a.jsonl", "{}")
    with pytest.raises(InputError, match="a zip archive"):
        load(str(tmp_path / "z.jsonl"))


def test_real_tables(shared):
    """Every line of a real TSV with quotations in it is a row, none swallows the next."""
    path = shared / "data" / "instruction" / "flan_cot" / "strategyqa_train.tsv"
    lines = path.read_text().rstrip("\n").split("\n")
    table = files.read(Place(path, headless=True))
    assert (len(table.rows), table.broken) == (len(lines), [])
    assert ["\t".join(row.values()) for _, row in table.rows] == [line.rstrip("\r") for line in lines]
    sst2 = {"path": str(shared / "data" / "eval" / "sst2" / "train.tsv"), "columns": {"text": 0, "label": 1}}
    loaded = load({**sst2, "labels": {0: "negative", 1: "positive"}})
    assert len(loaded.records) == 6920
    assert {r.messages[1]["content"] for r in loaded.records} == {"negative", "positive"}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("prompt, completion\na, b\n", [{"prompt": "a", "completion": "b"}]),
        ('prompt, completion\n"a", "b, c"\n', [{"prompt": "a", "completion": "b, c"}]),
        ("prompt, completion ,id\na, b,1\n", [{"prompt": "a", "completion": " b", "id": "1"}]),  # not after each comma
        ("prompt|completion\na|b, c\n", [{"prompt": "a", "completion": "b, c"}]),
    ],
)
def test_csv_with_spaces_and_bars(write, content, rows):
    assert [row for _, row in files.read(write("s.csv", content)).rows] == rows


def test_a_header_is_no_row_though_columns_are_given_by_place(write):
    columns = {"text": 0, "label": 1}
    records = load({"path": write("h.csv", "text,label\na,x\n"), "columns": columns}).records
    assert [(r.messages[0]["content"], r.origin.row) for r in records] == [("a", 1)]
    assert len(load({"path": write("r.csv", "text it,label\na,x\n"), "columns": columns}).records) == 2


def test_broken_csv_is_told_by_its_row(write):
    with pytest.raises(InputError, match=r"l\.csv, row 2: line 3 is not UTF-8 \(byte 0xe9\)"):
        load(write("l.csv", "prompt,completion\na,b\nc,é\n".encode("latin-1")))
    with pytest.raises(
        InputError, match=r"row 1: line 2 has 3 values.*; put quotes around a value that has the separator"
    ):
        load(write("w.csv", "prompt,completion\na,b,c\n"))


@pytest.mark.parametrize(
    ("name", "content", "number", "field"),
    [
        ("d.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', 2, "text"),
        ("d.json", '[{"text": "a"}, {"text": "b", "x": {"y": 1, "z": 2, "y": 3}}]', 2, "y"),
    ],
)
def test_a_field_that_a_row_has_twice_is_not_read_once(write, name, content, number, field):
    (wrong,) = files.read(write(name, content)).broken
    assert (wrong.origin.row, wrong.kind, wrong.field) == (number, "repeated_field", field)
    assert f'the row has the field "{field}" twice; keep one of them.' in str(wrong)


def test_columns_of_one_name_are_not_read_once(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(InputError, match=r'd\.parquet: two columns have the name "text"; give one of them another'):
        load(path)


@pytest.mark.parametrize(
    "content", ['{"prompt": ["a", "b"], "completion": ["c", "d"]}', '{"text": {"0": "a"}, "id": {"0": 1}}']
)
def test_tables_by_columns_are_refused_with_the_remedy(write, content):
    with pytest.raises(InputError, match=r"c\.json: the file holds columns, expected rows; pandas writes them by"):
        load(write("c.json", content))


def test_json_over_several_lines_under_the_name_of_json_lines(write):
    with pytest.raises(InputError, match=r"row 1: line 1 is broken JSON .*; expected one whole JSON object a line"):
        load(write("p.jsonl", '{\n "text": "a"\n}\n'))
