"""Reports in CSV: read back whole, and no cell is a formula."""

import csv
from pathlib import Path

import pytest

from tunesmith.data.inspect import inspect
from tunesmith.data.reports import neutral, write_csv, write_problems
from tunesmith.errors import InputError


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", " =", "\u00a0@"])
def test_cells_that_spreadsheets_would_run(start):
    assert neutral(f"{start}1+1") == f"'{start}1+1"


@pytest.mark.parametrize(
    ("cell", "written"), [(None, ""), (-3, "-3"), (2.5, "2.5"), ("a=b", "a=b"), ("", ""), ("1-2", "1-2")]
)
def test_other_cells_stay(cell, written):
    assert neutral(cell) == written


def test_written_and_read_back(tmp_path):
    rows = [{"a": '=HYPERLINK("x")', "b": 'say "hi", you;\nthere'}, {"a": -1, "c": "left out"}]
    write_csv(tmp_path / "r.csv", ("a", "b"), rows)
    with open(tmp_path / "r.csv", encoding="utf-8-sig", newline="") as f:
        assert list(csv.reader(f)) == [["a", "b"], ['\'=HYPERLINK("x")', 'say "hi", you;\nthere'], ["-1", ""]]
    assert (tmp_path / "r.csv").read_bytes()[:3] == b"\xef\xbb\xbf"  # else Excel takes it for Windows-1252
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"r\.csv cannot be written"):
        write_csv(tmp_path / "no" / "r.csv", ("a",), [])


def test_problems_of_a_hostile_set(write, tmp_path):
    rows = [
        {"instruction": "=cmd|' /C calc'!A0", "output": ""},
        {"instruction": "a", "output": "@SUM(1) {{name}} is here"},
    ]
    path = write("a.jsonl", rows)
    before = Path(path).read_bytes()
    write_problems(tmp_path / "p.csv", inspect(path))
    with open(tmp_path / "p.csv", encoding="utf-8-sig", newline="") as f:
        found = list(csv.DictReader(f))
    assert [(p["file"], p["row"], p["field"], p["kind"], p["severity"]) for p in found] == [
        (path, "1", "output", "empty_answer", "error"),
        (path, "2", "output", "placeholder", "warning"),
    ]
    assert [p["sample"] for p in found] == ["'=cmd|' /C calc'!A0", "'@SUM(1) {{name}} is here"]
    assert Path(path).read_bytes() == before
