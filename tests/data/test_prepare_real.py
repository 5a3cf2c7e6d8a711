"""Real files through every default step: each row is accounted for, kept ones stand where the lineage says, and the bytes come again."""

import json

import pyarrow.parquet as pq
import pytest

from tunesmith.data import prepare, sources
from tunesmith.data.records import KINDS


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("rasbt/instruction-examples.json", {"chat"}),
        ("open_assistant/en_100_tree.jsonl", {"chat", "preference"}),
        ("llamafactory/glaive_toolcall_en_demo.json", {"chat"}),
        ("llamafactory/c4_demo.jsonl", {"text"}),
    ],
)
def test_every_row_of_a_real_file_is_accounted_for(shared, tmp_path, path, kinds):
    data = str(shared / "data" / "instruction" / path)
    section = {"language": False, "near_duplicates": {"threshold": 0.8}}
    report = prepare.run(data, section, tmp_path / "out", seed=1)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    lines = pq.read_table(tmp_path / "out" / "lineage.parquet").to_pylist()
    before = sources.load(data).records
    assert [(x["file"], x["row"], x["part"]) for x in lines[: len(before)]] == [
        (r.origin.file, r.origin.row, r.origin.part) for r in before
    ]
    assert set(card["kinds"]) == kinds
    kept = [x for x in lines if x["fate"] == "kept"]
    assert len(kept) == report["rows"]["kept"] == sum(f["rows"] for f in report["files"])
    assert len({(x["output"], x["line"]) for x in kept}) == len(kept)
    assert all(x["reason"] and x["step"] for x in lines if x["fate"] == "dropped")
    written = {f["path"]: sources.load(str(tmp_path / "out" / f["path"])).records for f in report["files"]}
    for x in kept:
        record = written[x["output"]][x["line"] - 1]
        assert KINDS[type(record)] == x["kind"]
        if json.loads(x["events"]) == []:  # never changed: what was read is what was written
            old = before[x["id"]]
            assert type(record)(**{**_fields(record), "origin": old.origin}) == old
    again = prepare.rebuild(card["recipe"], tmp_path / "again")
    assert (again["sha256"], again["files"]) == (report["sha256"], report["files"])


def _fields(record) -> dict:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
