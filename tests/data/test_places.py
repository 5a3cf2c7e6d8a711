"""What a path means: files, folders, patterns, data sets of the hub, and which of their rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data import files
from tunesmith.data.places import Place
from tunesmith.data.sources import load
from tunesmith.errors import InputError

ROWS = [{"text": f"row {i}"} for i in range(30)]


def test_parts_in_percent_meet_without_a_gap(write):
    path = write("a.jsonl", [{"text": str(i)} for i in range(101)])
    parts = [load(f"{path}[{a}%:{a + 10}%]").records for a in range(0, 100, 10)]
    assert [r.text for part in parts for r in part] == [str(i) for i in range(101)]


def test_a_slice_of_several_files_is_taken_of_each(write, tmp_path):
    write("d/a.jsonl", [{"text": f"a{i}"} for i in range(4)])
    write("d/b.jsonl", [{"text": f"b{i}"} for i in range(4)])
    loaded = load(f"{tmp_path}/d/*.jsonl[:2]")
    assert [r.text for r in loaded.records] == ["a0", "a1", "b0", "b1"]
    assert "[:2] is taken of each of the 2 files" in loaded.notices[0]


def test_patterns(write, tmp_path, monkeypatch):
    write("data/a.jsonl", [{"text": "a"}])
    write("data/b.csv", "text\nb\n")
    write("data/notes.md", "not data")
    write("data/deep/er/c.jsonl", [{"text": "c"}])
    write("data/.hidden.jsonl", "broken")
    write("data/with[brackets].jsonl", [{"text": "d"}])
    monkeypatch.chdir(tmp_path)

    def texts(pattern):
        return sorted(r.text for r in load(pattern).records)

    assert texts("data/*.jsonl") == ["a", "d"]
    assert texts("data/[ab].*") == ["a", "b"]
    assert texts("data/**/*.jsonl") == ["a", "c", "d"]
    assert texts("data/*") == ["a", "b", "d"]
    assert texts("data/dee?") == ["c"]
    assert texts("data/with[brackets].jsonl") == ["d"]  # a file of that name is no pattern
    with pytest.raises(InputError, match=r"^no file matches the pattern data/x\*\.jsonl\.$"):
        load("data/x*.jsonl")
    with pytest.raises(InputError, match=r"the pattern data/\*\.rst matches no data file|no file matches"):
        load("data/*.rst")
    with pytest.raises(InputError, match=r"The first rows are written data/a\.jsonl\[:500\]"):
        load("data/a.jsonl[500]")


def test_patterns_keep_splits_apart(write, tmp_path):
    for name in ("train", "test"):
        write(f"d/{name}-0.jsonl", [{"text": name}])
    loaded = load(f"{tmp_path}/d/*.jsonl")
    assert [r.text for r in loaded.records] == ["train"]
    assert "left out: test-0.jsonl" in loaded.notices[0]
    assert [r.text for r in load(f"{tmp_path}/d/test*").records] == ["test"]
    with pytest.raises(InputError, match=r'has no files of the split "validation"; it has test, train\.'):
        load({"path": f"{tmp_path}/d", "split": "validation"})


def test_a_folder_that_datasets_saved(tmp_path, write):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(str(tmp_path / "several"))
    left = pa.table({"text": ["of a map"]})  # as `map` leaves it there
    with (
        pa.OSFile(str(tmp_path / "one" / "cache-12.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, left.schema) as writer,
    ):
        writer.write_table(left)
    assert [r.text for r in load(str(tmp_path / "one")).records] == [row["text"] for row in ROWS]
    assert len(load(str(tmp_path / "several")).records) == 30
    assert len(load({"path": str(tmp_path / "several"), "split": "test"}).records) == 3


def test_a_folder_may_be_called_like_a_file(tmp_path):
    (tmp_path / "out.parquet").mkdir()  # as Spark writes it
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "out.parquet" / "part-0.parquet")
    (tmp_path / "out.parquet" / "_SUCCESS").touch()
    assert len(load(str(tmp_path / "out.parquet")).records) == 30
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(InputError, match=r"the folder .*d\.jsonl holds no data files"):
        load(str(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        ("[30:40]", "a.jsonl: [30:40] holds no rows: the file has 30 rows."),
        ("[:0]", "a.jsonl: [:0] holds no rows: that is less than one row."),
        ("[:1%]", "a.jsonl: [:1%] holds no rows: that is less than one row."),
        ("[5:2]", "[5:2] holds no rows; its end must be above its start."),
        ("[:200%]", "200% is no share of the rows; expected up to 100%."),
        ("[a:b]", "no file matches the pattern"),
    ],
)
def test_slices_without_rows(write, cut, sentence):
    path = write("a.jsonl", [{"text": str(i)} for i in range(30)])
    with pytest.raises(InputError) as e:
        load(path + cut)
    assert sentence in str(e.value)
    with pytest.raises(InputError, match="both its end and the split say which rows are meant"):
        load({"path": f"{path}[:3]", "split": "train[:2]"})


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("s3://bucket/x", "is an address; data is read from files and the hub"),
        ("a\0b.jsonl", "a path of data holds a zero byte"),
        ("x" * 300 + ".jsonl", "there is no data file xxx"),
        ("~nobody_here/x.jsonl", "the home folder it names is not known"),
        ("org/name:", "there is no data file org/name:."),
    ],
)
def test_places_that_are_none(path, sentence):
    with pytest.raises(InputError) as e:
        load(path)
    assert sentence in str(e.value)


def test_the_config_of_a_hub_set_is_none_of_a_file(write):
    with pytest.raises(InputError, match=r'"name" \(main\) is the config of a data set of the hub'):
        load({"path": write("a.jsonl", ROWS), "name": "main"})


def test_hub_ids(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.expand("openai/gsm8k:main@test[:10%]")[0] == [
        Place(hub="openai/gsm8k", config="main", split="test", cut=files.Cut(None, "10%"))
    ]
    assert files.expand("openai/gsm8k", "test[:5]", "main")[0][0].cut == files.Cut(None, "5")
    assert str(files.expand("openai/gsm8k", "test", "main")[0][0]) == "openai/gsm8k:main@test"
