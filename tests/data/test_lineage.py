"""Every input row's fate is told, and a dropped row comes back."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tunesmith.data import lineage, prepare, recipe
from tunesmith.data.ingest import Read
from tunesmith.data.output import Written
from tunesmith.data.records import Origin, Text
from tunesmith.data.rows import Rows
from tunesmith.data.spool import Journal, Records
from tunesmith.data.why import restore, why
from tunesmith.errors import InputError


def same(rows: Rows) -> dict:
    """Drop texts whose first four characters were there before."""
    seen: dict[str, int] = {}
    for id_, record in rows:
        first = seen.setdefault(record.text[:4], id_)
        if first != id_:
            rows.drop(id_, "nearly repeats another", of=first, similarity=0.925)
    return {}


def louder(rows: Rows) -> dict:
    for id_, record in list(rows):
        if record.text.startswith("say"):
            rows.change(id_, replace(record, text=record.text + "!"), "made louder")
            rows.add(replace(record, text="quiet"), "a variation", from_=[id_])
    return {}


@pytest.fixture(autouse=True)
def _steps(monkeypatch):
    from tunesmith.data.steps import personal_data, split

    found = {
        "same": SimpleNamespace(ORDER=30, DEFAULT=True, apply=same),
        "personal_data": personal_data,
        "louder": SimpleNamespace(ORDER=90, DEFAULT=False, apply=louder),
        "split": split,
    }
    monkeypatch.setattr(recipe, "all_steps", lambda: found)


@pytest.fixture
def rows(write) -> str:
    good = [
        json.dumps({"text": t}) for t in ("abcd first", "efgh", "abcd second", "say it", "mail anna@schmidt-hausbau.de")
    ]
    return write("rows.jsonl", "\n".join([*good[:2], "{broken", *good[2:]]) + "\n")


@pytest.fixture
def made(rows, tmp_path) -> Path:
    prepare.run(rows, {"louder": True, "split": False}, tmp_path / "out")
    return tmp_path / "out"


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]


def test_a_kept_row_is_told_with_its_file_and_line(made, rows):
    found = why(made, "2")
    assert (found["file"], found["row"], found["fate"]) == (rows, 2, "kept")
    assert found["says"] == [f"{rows}, row 2 is kept: train.jsonl, line 2."]
    assert found["source"] == found["records"][0]["text"] == "efgh"
    assert texts(made)[1] == "efgh"


def test_a_dropped_row_is_told_with_its_step_reason_and_neighbour(made, rows):
    found = why(made, "4")
    assert found["says"] == [
        f"{rows}, row 4 is dropped by same: nearly repeats another (see {rows}:1, similarity 0.925)."
    ]
    assert (found["fate"], found["source"], found["records"][0]["text"]) == ("dropped", "abcd second", None)


def test_a_broken_row_is_told_with_its_reason(made, rows):
    found = why(made, "3")
    assert found["says"][0].startswith(f"{rows}, row 3 is dropped by read: line 3 is broken JSON (")
    assert (found["source"], found["records"][0]["id"]) == (None, None)


def test_a_changed_row_and_what_was_made_from_it(made, rows):
    found = why(made, "rows.jsonl:5")
    assert found["says"] == [
        f"{rows}, row 5 is kept: train.jsonl, line 3.",
        "louder changed it: made louder.",
        "1 row was made from it: record 5.",
        f"record 5, made by louder from {rows}:5, is kept: train.jsonl, line 5.",
    ]
    assert (found["source"], [r["text"] for r in found["records"]]) == ("say it", ["say it!", "quiet"])
    assert texts(made)[2::2] == ["say it!", "quiet"]


def test_a_line_of_the_set_leads_to_the_row_it_came_from(made, rows):
    assert why(made, "train.jsonl:3")["row"] == 5
    assert why(made / "card.json", "train.jsonl:2")["row"] == 2


def test_personal_data_is_masked_where_its_step_ran(made, rows, tmp_path):
    found = why(made, "6")
    assert found["source"] == "mail <EMAIL>"
    assert "hausbau" not in json.dumps(found)
    prepare.run(rows, {"personal_data": False, "split": False}, tmp_path / "other")
    assert why(tmp_path / "other", "6")["source"] == "mail anna@schmidt-hausbau.de"


def test_a_source_that_is_gone_or_changed_is_said(made, rows):
    with open(rows, "a") as f:
        f.write("\n")
    found = why(made, "2")
    assert found["source"] is None
    assert found["notices"] == [f"{rows} has changed since; what the row said is not known any more"]
    Path(rows).unlink()
    assert "cannot be shown (there is no data file" in why(made, "2")["notices"][0]
    assert found["says"] == why(made, "2")["says"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("99", "has no row 99; 6 rows were read from it."),
        ("9" * 30, "has no row 9+; 6 rows were read from it."),
        ("0", '"0" is no row; give its number from 1, or FILE:ROW.'),
        ("x", '"x" is no row'),
        ("rws.jsonl:2", 'is no source and no file of .*Did you mean "rows.jsonl"'),
        ("train.jsonl:77", "train.jsonl has no row 77; 5 rows were read from it."),
    ],
)
def test_a_row_that_is_not_there(made, row, sentence):
    with pytest.raises(InputError, match=sentence):
        why(made, row)
    with pytest.raises(InputError, match="there is no data card"):
        why(made.parent / "nowhere", row)


def test_of_several_sources_the_file_must_be_named(write, tmp_path):
    paths = [write(f"{d}/rows.jsonl", [{"text": f"{d}{i} text"} for i in range(3)]) for d in "ab"]
    prepare.run(paths, {"split": False}, tmp_path / "out")
    with pytest.raises(InputError, match=r"the set has 2 source files; say which: rows.jsonl:2."):
        why(tmp_path / "out", "2")
    with pytest.raises(InputError, match=r'"rows.jsonl" may be .* or '):
        why(tmp_path / "out", "rows.jsonl:2")
    assert why(tmp_path / "out", "b/rows.jsonl:2")["source"] == "b1 text"


def test_a_dropped_row_comes_back_and_nothing_else_changes(made, rows):
    before = texts(made)
    found = restore(made, "4")
    assert found["restored"]
    assert found["says"] == [
        f"{rows}, row 4 is kept: train.jsonl, line 3.",
        f"same would drop it: nearly repeats another (see {rows}:1, similarity 0.925); but it was brought back.",
    ]
    assert texts(made) == [*before[:2], "abcd second", *before[2:]]
    card = json.loads((made / "card.json").read_text())
    assert card["recipe"]["prepare"]["restore"] == [f"{rows}:4"]
    assert card["rows"]["spared"] == 1


def test_a_restored_set_is_what_its_recipe_makes(made, rows, tmp_path):
    restore(made, "4")
    section = {"louder": True, "split": False, "restore": [f"{rows}:4"]}
    prepare.run(rows, section, tmp_path / "other")
    for name in ("train.jsonl", "lineage.parquet", "recipe.yaml"):
        assert (made / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_what_cannot_be_restored(made, rows, tmp_path):
    assert restore(made, "2")["restored"] is False
    with pytest.raises(
        InputError, match=r"rows.jsonl:3 cannot be brought back: line 3 is broken JSON .*; mend the row"
    ):
        restore(made, "3")
    with pytest.raises(InputError, match=r'prepare.restore names "nowhere:4", which is no row'):
        prepare.run(rows, {"restore": ["nowhere:4"]}, tmp_path / "other")
    with open(rows, "a") as f:
        f.write("\n")
    before = (made / "card.json").read_bytes()
    with pytest.raises(InputError, match=r"rows.jsonl has changed since the recipe was made"):
        restore(made, "4")
    assert (made / "card.json").read_bytes() == before


def test_what_was_made_from_a_row_is_no_part_of_its_fate(rows, tmp_path):
    """The row is dropped, and so is what was made from it: it comes back. Kept, there is nothing to bring back."""
    section = {"louder": True, "same": False, "split": {"train": 1, "validation": 0, "test": 0}}
    prepare.run(rows, section, tmp_path / "out")
    found = why(tmp_path / "out", "5")
    assert found["fate"] == "dropped"
    assert found["says"][0].startswith(f"{rows}, row 5 is dropped by split: left over")
    assert found["says"][3].startswith(f"record 5, made by louder from {rows}:5, is dropped by split")
    found = restore(tmp_path / "out", "5")
    assert (found["restored"], found["fate"]) == (True, "kept")
    assert {r["fate"] for r in found["records"]} == {"kept", "dropped"}
    assert restore(tmp_path / "out", "5")["restored"] is False


def test_the_set_may_be_named_as_prepare_prints_it(made, rows, monkeypatch):
    assert why(made, f"{made}/train.jsonl:3")["row"] == 5
    monkeypatch.chdir(made.parent)
    assert why("out", "out/train.jsonl:3")["row"] == 5


@pytest.mark.parametrize("name", ["out: of ü", "a b", "s3:x"])
def test_a_folder_of_any_name(rows, tmp_path, monkeypatch, tunesmith_cli, name):
    """pyarrow takes a relative path with a colon for an address; a shell takes one with a space for two."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = tunesmith_cli("data", "prepare", rows, "--output", name, "--set", "split=false")
    assert code == 0
    assert f"tunesmith data why {shlex.quote(name)} ROW" in out
    assert why(name, "2")["records"][0]["output"] == "train.jsonl"


def test_the_command_line(made, rows, tunesmith_cli, refused):
    code, out, _ = tunesmith_cli("data", "why", made, 4)
    assert code == 0
    assert out.startswith(f"{rows}, row 4 is dropped by same: nearly repeats another")
    assert f"Bring it back with: tunesmith data why {made} {rows}:4 --restore" in out
    code, out, _ = tunesmith_cli("data", "why", made, 4, "--restore", "--json")
    assert (code, json.loads(out)["restored"], json.loads(out)["fate"]) == (0, True, "kept")
    code, out, _ = tunesmith_cli("data", "why", made, "rows.jsonl:4", "--restore")
    assert out.startswith("Nothing to bring back: no step has dropped this row.")
    assert "has no row 70" in refused("data", "why", made, 70)
    assert "cannot be read as a data card" in refused("data", "why", rows, 1)


class Many(Rows):
    """Rows whose records are made when asked for."""

    def __getitem__(self, id_: int) -> Text:
        return Text(f"t{id_}", Origin("a.jsonl", id_ + 1))


def test_one_row_of_many_is_found_in_a_small_part_of_the_file(tmp_path, monkeypatch):
    """Of 40,000 rows 8,192 are read to find one: the parts of the file say which rows they hold."""
    n = 40_000
    rows = Many(range(n))
    rows.step = "half"
    for id_ in range(0, n, 2):
        rows.drop(id_, f"even {id_}")
    none = np.zeros(0)
    read = Read(Records(), Journal(), np.zeros(n, np.int64), none, none, [])
    file = np.where(rows.alive, 0, -1)
    lineage.write(rows, read, Written([{"path": "train.jsonl"}], file, np.arange(n)), tmp_path / lineage.FILE)
    groups = []
    table = pq.read_table
    monkeypatch.setattr(
        pq,
        "read_table",
        lambda path, filters: groups.append(_groups(path, *filters[1])) or table(path, filters=filters),
    )
    found = lineage.find(tmp_path, [("file", "==", "a.jsonl"), ("row", "==", 30_001)])
    assert [(line["id"], line["fate"], line["reason"]) for line in found] == [(30_000, "dropped", "even 30000")]
    assert groups == [1]


def _groups(path, column, _, value) -> int:
    """How many of a file's row groups can hold the value, by what they say of their smallest and largest."""
    metadata = pq.read_metadata(path)
    at = metadata.schema.names.index(column)
    stats = [metadata.row_group(i).column(at).statistics for i in range(metadata.num_row_groups)]
    assert metadata.num_row_groups == 5
    return sum(s.min <= value <= s.max for s in stats)
