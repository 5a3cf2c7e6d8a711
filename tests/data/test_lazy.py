"""Records of large files are made when they are asked for: the same as those of small ones, in any order, with flat memory."""

import copy
import csv
import gzip
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data import lazy, load_file, splits, unpacked
from tunesmith.data.records import KINDS, Preference, Text
from tunesmith.data.sources import check_objective, load
from tunesmith.errors import InputError

ROWS = [
    {"prompt": f"say {i} é\u2028", "completion": f'{i}, "b"\r\nnext 😀' * (i % 5 + 1), "n": str(i)} for i in range(50)
]
LOGGED = {
    "messages": [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "so", "rating": "good", "regenerations": ["no"]},
    ]
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TUNESMITH_CACHE", str(folder))
    return folder


@pytest.fixture
def both(monkeypatch):
    """Load something as a small set and as a large one."""

    def _both(entries, **how):
        small = load(entries, **how)
        with monkeypatch.context() as m:
            m.setattr(load_file, "LARGE", 0)
            return small, load(entries, **how)

    return _both


def write_all(folder):
    """Write the same rows in every kind of file that can be large."""
    lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS))
    (folder / "a.jsonl").write_text(lines)
    (folder / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (folder / "blank.jsonl").write_text("\n \n" + lines.replace("\n", "\r\n\n"))
    (folder / "a.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=1))
    (folder / "data.json").write_text(json.dumps({"é": "ü", "data": ROWS, "n": 1}, ensure_ascii=False))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.json.zst").write_bytes(pa.compress(json.dumps(ROWS).encode(), "zstd", asbytes=True))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(folder / name, "w", newline="", encoding="utf-8-sig") as f:
            writer = csv.DictWriter(f, ROWS[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "a.parquet", row_group_size=11)
    for name, new in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(folder / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, 7)
    return sorted(p for p in folder.iterdir() if p.is_file())


@pytest.mark.parametrize("cut", ["", "[7:40]", "[-3:]"])
def test_the_same_records_in_any_order(tmp_path, both, cut):
    order = np.random.default_rng(0).permutation(50)
    found = write_all(tmp_path)
    assert len(found) == 12
    for path in found:
        small, large = both(f"{path}{cut}")
        rows = list(small.records)
        assert isinstance(small.records, list)
        assert isinstance(large.records, lazy.Joined)
        assert list(large.records) == rows
        assert [large.records[int(i) % len(rows)] for i in order] == [rows[int(i) % len(rows)] for i in order]
        assert large.records[-1] == rows[-1]
        assert list(large.records[2:30:3]) == rows[2:30:3]
        assert list(large.records[::-1]) == rows[::-1]
        assert (large.notices, large.kinds, list(large.source)) == (small.notices, small.kinds, list(small.source))
        with pytest.raises(IndexError):
            large.records[len(rows)]


def test_several_files_and_sources(tmp_path, both):
    write_all(tmp_path)
    (tmp_path / "doc.json").write_text(json.dumps({"rows": ROWS}))  # no list: it is in memory
    entries = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 2},
        str(tmp_path / "a.*"),
        {"path": str(tmp_path / "doc.json"), "as": "prompt"},
    ]
    small, large = both(entries)
    assert list(large.records) == small.records
    assert list(large.source) == list(small.source)
    assert (len(large.records), len(large.files)) == (50 * 9, 9)
    assert [large.records[i] for i in range(0, 450, 7)] == small.records[::7]
    assert [len(r) for r in (large.records[3:5], large.records[100:], large.records[600:])] == [2, 350, 0]


def test_a_folder_of_texts(tmp_path, both):
    (tmp_path / "t").mkdir()
    for i in range(5):
        (tmp_path / "t" / f"{i}.txt").write_bytes(b"\xef\xbb\xbf" * (i % 2) + f"é {i}\n".encode())
    (tmp_path / "t" / "6.txt.gz").write_bytes(gzip.compress(b"six"))
    small, large = both(str(tmp_path / "t"))
    assert isinstance(large.records, lazy.Joined)
    assert list(large.records) == small.records
    assert [r.text for r in small.records] == [*(f"é {i}\n" for i in range(5)), "six"]


def test_rows_that_make_several_records(write, both):
    """Each is found by its row and its place among the row's; those of a kind that nothing reads are left out and counted."""
    path = write("logs.jsonl", [LOGGED] * 3)
    small, large = both(path)
    assert isinstance(large.records, lazy.Joined)
    assert list(large.records) == small.records
    of_row = [KINDS[type(r)] for r in small.records[: len(small.records) // 3]]
    assert {"chat", "verdict", "preference"} == set(of_row)
    assert [KINDS[type(r)] for r in large.records] == of_row * 3
    assert [(r.origin.row, r.origin.part) for r in large.records] == [
        (i, p) for i in (1, 2, 3) for p in range(len(of_row))
    ]
    assert "3 rows of the format chatlog (has messages with rating), read as 3 chat" in large.notices[0]

    small, large = both(path, reads=(Preference,))
    assert list(large.records) == small.records
    assert [(type(r), r.origin.part) for r in large.records] == [(Preference, of_row.index("preference"))] * 3
    assert (large.kinds, list(large.source)) == ({"preference"}, [0, 0, 0])
    left = large.files[0].left_out
    assert left == {kind: 3 * of_row.count(kind) for kind in ("chat", "verdict")}
    assert "left out, because the objective does not read it: 3 chat" in large.notices[-1]
    check_objective(large, "dpo", (Preference,))
    _, large = both(path, reads=(Text,))  # none can be read: that is said by name
    with pytest.raises(InputError, match=r"logs\.jsonl holds chat rows; the objective pretrain reads text"):
        check_objective(large, "pretrain", (Text,))


def test_a_set_with_an_objective_of_its_own_keeps_what_that_reads(write):
    path = write("logs.jsonl", [LOGGED] * 3)
    loaded = load([path, {"path": path, "objective": "sft"}], reads=(Preference,))
    assert [info.kinds for info in loaded.files] == [{"preference": 3}, {"chat": 3}]


def test_messages_of_trees_in_rows_of_their_own_are_joined(write, both):
    rows = [
        {"message_id": "a", "parent_id": None, "message_tree_id": "a", "text": "why?", "role": "prompter"},
        {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "text": "so", "role": "assistant", "rank": 0},
    ]
    small, large = both(write("messages.jsonl", rows))
    assert list(large.records) == small.records
    assert [m["content"] for m in small.records[0].messages] == ["why?", "so"]


def test_the_first_wrong_row_is_named_at_load(write, both, monkeypatch):
    good = json.dumps(ROWS[0])
    for last, sentence in (
        ('{"prompt": "a"}', 'row 4: field "completion" is missing'),
        ('{"prompt": ', "row 4: line 4 is broken JSON"),
    ):
        path = write("w.jsonl", f"{good}\n\n{good}\n{last}\n{good}\n")
        for entries in (path, [write("before.jsonl", [ROWS[0]]), path]):
            with pytest.raises(InputError, match=sentence):
                both(entries)
            with monkeypatch.context() as m:
                m.setattr(load_file, "LARGE", 0)
                with pytest.raises(InputError, match=sentence):
                    load(entries)


def test_a_file_that_changes_under_the_reader_is_named(write, both):
    path = write("a.jsonl", ROWS)
    _, large = both(path)
    assert large.records[3].origin.row == 4
    with open(path, "a") as f:
        f.write("\n")
    with pytest.raises(InputError, match=r"a\.jsonl was changed or removed while it was in use; start again\."):
        large.records[40]
    with pytest.raises(InputError, match="changed"):
        large.files[0].sha256()
    _, large = both(path)
    os.unlink(path)
    with pytest.raises(InputError, match="changed or removed"):
        large.records[0]


def test_the_hash_of_a_file_is_that_of_its_bytes(write, both):
    import hashlib

    path = write("a.jsonl", ROWS)
    for loaded in both(path):
        assert loaded.files[0].sha256() == hashlib.sha256(open(path, "rb").read()).hexdigest()  # noqa: SIM115


def test_copies_are_made_once_and_anew_where_the_file_changed(tmp_path, both, cache, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    written = []
    write = unpacked._write
    monkeypatch.setattr(unpacked, "_write", lambda place, to: (written.append(to), write(place, to)))
    for _ in range(2):
        assert both(str(path))[1].records[0].text == "one"
    assert len(written) == 1
    path.write_bytes(gzip.compress(b'{"text": "two"}\n'))
    os.utime(path, ns=(1, 1))
    assert both(str(path))[1].records[0].text == "two"
    assert len(written) == 2
    assert sorted(p.suffix for p in (cache / "rows").iterdir()) == [".text", ".text"]


def test_a_damaged_or_interrupted_copy_leaves_nothing_behind(tmp_path, both, cache, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 9999)[:-9])
    monkeypatch.setattr(load_file, "LARGE", 0)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: the file cannot be unpacked \(Truncated"):
        load(str(path))
    path.write_bytes(gzip.compress(b'{"text": "one"}\n'))

    def interrupted(place, to):
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(unpacked, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(str(path))
    assert list((cache / "rows").iterdir()) == []
    assert len(load(str(path)).records) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(load_file, "LARGE", 0)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz is large and needs a copy .* set TUNESMITH_CACHE"):
        load(str(tmp_path / "a.jsonl.gz"))


def test_old_copies_go_first(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(load_file, "LARGE", 0)
    monkeypatch.setattr(unpacked, "MOST_BYTES", 2500)
    for i in range(4):
        path = tmp_path / f"{i}.jsonl.gz"
        path.write_bytes(gzip.compress(json.dumps({"text": str(i) * 1000}).encode()))
        load(str(path))
        for copied in (cache / "rows").iterdir():
            stat = copied.stat()
            os.utime(copied, (stat.st_atime - 100, stat.st_mtime - 100))
    kept = sorted(p.read_text()[10] for p in (cache / "rows").iterdir())
    assert kept == ["2", "3"]


def test_threads_copies_and_other_processes_read_the_same(tmp_path, both):
    for path in write_all(tmp_path):
        _, large = both(str(path))
        expected = list(large.records)
        wrong = []

        def read(seed, records=large.records, expected=expected, wrong=wrong):
            order = np.random.default_rng(seed).integers(0, 50, 200)
            wrong.extend(i for i in order if records[int(i)] != expected[i])

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert list(copy.copy(large.records)) == expected
        assert list(pickle.loads(pickle.dumps(large.records))) == expected


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_file_that_is_larger_than_it_looks(tmp_path, monkeypatch, name):
    """What is compressed a hundredfold is told by what comes out of it."""
    rows = [{"text": f"{i} {'a' * 1000}"} for i in range(100)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    small = load(str(tmp_path / name)).records
    assert isinstance(small, list)
    monkeypatch.setattr(load_file, "LARGE", 50_000)
    assert (tmp_path / name).stat().st_size * 5 < 50_000
    large = load(str(tmp_path / name)).records
    assert isinstance(large, lazy.Joined)
    assert list(large) == small


def test_a_large_set_of_the_hub_stays_where_datasets_keeps_it(both, monkeypatch):
    datasets = pytest.importorskip("datasets")

    rows = datasets.Dataset.from_list(ROWS)

    class Hub:
        @staticmethod
        def load_dataset(name, config, split, streaming):
            return rows

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    monkeypatch.setattr("tunesmith.model.loading.unreachable", lambda name: True)
    small, large = both("org/name[3:40]")
    assert isinstance(small.records, list)
    assert isinstance(large.records, lazy.Joined)
    assert list(large.records) == small.records
    assert large.records[-1].origin.row == 40
    assert large.files[0].sha256() is None


def test_splits_take_lazy_records(write, both):
    small, large = both(write("a.jsonl", ROWS))
    for a, b in zip(splits.split(small.records), splits.split(large.records), strict=True):
        assert np.array_equal(a, b)


MEASURE = """
import sys
from tunesmith.data import load_file
from tunesmith.data.sources import load
load_file.LARGE = 4_000_000
loaded = load(sys.argv[1])
rows = sum(1 for record in loaded.records)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, int(peak) / 1024, type(loaded.records).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_memory_is_flat(tmp_path, name):
    """Five times the file costs the places of its rows, about 30 bytes each; the rows alone would be 60 MB, of Parquet 300.

    pyarrow's allocator keeps what it once had: 120 to 180 MB at any size from 10,000 to 400,000 rows.
    """
    words = "word " * 300
    counts, growth = ((50_000, 250_000), 80) if name == "a.parquet" else ((10_000, 50_000), 30)
    peaks = []
    for count in counts:
        path = tmp_path / f"{count}-{name}"
        write_rows(path, ({"prompt": f"q{i}", "completion": f"{words}{i}"} for i in range(count)))
        out = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
        rows, peak, kind = out.stdout.split()
        assert (int(rows), kind) == (count, "Joined")
        peaks.append(float(peak))
        path.unlink()
    assert peaks[1] - peaks[0] < growth
    assert peaks[1] < 250


def write_rows(path, rows):
    if path.suffix == ".parquet":
        write_parquet(path, rows)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["prompt", "completion"])
            writer.writerows(row.values() for row in rows)
    else:
        between = ",\n" if path.suffix == ".json" else "\n"
        with gzip.open(path, "wt", 1) if path.suffix == ".gz" else path.open("w") as f:
            f.write("[" if path.suffix == ".json" else "")
            for i, row in enumerate(rows):
                f.write((between if i else "") + json.dumps(row))
            f.write("]" if path.suffix == ".json" else "")


def write_parquet(path, rows):
    schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        waiting = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == 20_000:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
