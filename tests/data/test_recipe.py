"""The recipe that makes a set again, the section and command that ask for one, and the sets training keeps in the cache."""

import json
import os
import sys

import pytest
import yaml
from small_set import ODD, content, lines, refused, small_steps, step

from tunesmith.data import prepare, recipe, work
from tunesmith.data.card import sha256
from tunesmith.data.rows import Rows
from tunesmith.data.why import why


@pytest.fixture(autouse=True)
def _steps(monkeypatch):
    found = small_steps()
    monkeypatch.setattr(recipe, "all_steps", lambda: found)


@pytest.fixture
def rows(write) -> str:
    content = [{"text": f"text number {i}"} for i in range(40)] + [{"text": "x"}, {"text": "text number 3"}]
    return write("rows.jsonl", content + [{"text": t + "...", "n": i} for i, t in enumerate(ODD)])


def test_the_recipe_makes_the_same_bytes(rows, tmp_path, tunesmith_cli):
    out = tmp_path / "out"
    section = {"louder": True, "personal_data": True, "split": {"stratify": "n", "test": 0}}
    with open(rows, "a") as f:
        f.write('{"text": "say it to anna@schmidt-hausbau.de, please"}\n')
    section["split"].pop("stratify")
    prepare.run(rows, section, out, seed=5)
    wanted = content(out)
    for n, made_of in enumerate(["card.json", "recipe.yaml"]):
        code, _, err = tunesmith_cli("data", "prepare", out / made_of, "--output", tmp_path / f"again-{n}")
        assert code == 0, err
        assert content(tmp_path / f"again-{n}") == wanted
    card = json.loads((out / "card.json").read_text())
    assert card["recipe"] == yaml.safe_load((out / "recipe.yaml").read_text())
    assert card["sha256"] == sha256(card)
    assert "hausbau" not in str(wanted)


def test_a_recipe_refuses_sources_that_changed_by_name(rows, write, tmp_path, refused):
    other = write("other.jsonl", [{"text": f"other {i}"} for i in range(9)])
    prepare.run([rows, other], {}, tmp_path / "out")
    with open(other, "a") as f:
        f.write('{"text": "one more row"}\n')
    said = refused("data", "prepare", tmp_path / "out" / "card.json", "--output", tmp_path / "new")
    assert said.startswith(f"{other} has changed since the recipe was made (sha256 ")
    os.remove(other)
    said = refused("data", "prepare", tmp_path / "out" / "recipe.yaml", "--output", tmp_path / "new")
    assert "no data file" in said
    assert said.endswith(" (A recipe's paths are as they were given: call from the same folder.)")
    assert "leave --set" in refused(
        "data", "prepare", tmp_path / "out" / "card.json", "--output", tmp_path / "new", "--seed", 1
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data", 3, "the recipe's data should be a list of sources, found 3."),
        ("data", ["a.jsonl"], "the recipe's data should be a list of sources"),
        ("prepare", [1], "the recipe's prepare should be steps with their options, found [1]."),
        ("seed", "a", "the recipe's seed should be a whole number from 0, found a."),
        ("seed", -1, "the recipe's seed should be"),
        ("sources", [{}], "the recipe's sources should be a list of {path, sha256, bytes}, found [{}]."),
        ("files", "x", "the recipe's files should be a list of"),
        ("sources", None, "the recipe's sources should be"),
    ],
)
def test_a_recipe_written_by_hand_is_checked(rows, tmp_path, refused, key, value, sentence):
    prepare.run(rows, {}, tmp_path / "out")
    file = tmp_path / "out" / "recipe.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {key: value}))
    assert sentence in refused("data", "prepare", file, "--output", tmp_path / "new")


def test_other_versions_than_the_recipe_was_made_with_are_said(rows, tmp_path, tunesmith_cli):
    prepare.run(rows, {}, tmp_path / "out")
    made = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    made["versions"]["rensa"] = "0.0.1"
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(made))
    code, _, err = tunesmith_cli("data", "prepare", tmp_path / "old.yaml", "--output", tmp_path / "new")
    assert code == 0
    assert "Note: the recipe was made with rensa 0.0.1, now " in err


def test_some_rows_of_a_file_and_a_set_of_the_hub(rows, tmp_path, monkeypatch):
    class Hub:
        said = "from the hub"

        @classmethod
        def load_dataset(cls, name, config=None, split="train", streaming=False):
            return [{"text": f"{cls.said} {i} {name} {split}"} for i in range(4)]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    report = prepare.run([f"{rows}[10:13]", "org/name"], {"split": False}, tmp_path / "out")
    found = [row["text"] for row in lines(tmp_path / "out" / "train.jsonl")]
    assert found == [f"text number {i}" for i in (10, 11, 12)] + [f"from the hub {i} org/name train" for i in range(4)]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert [(s["path"], s["rows"], s.get("cut")) for s in card["sources"]] == [
        (rows, 3, "[10:13]"),
        ("org/name", 4, None),
    ]
    assert why(tmp_path / "out", "rows.jsonl:11")["source"] == "text number 10"
    assert why(tmp_path / "out", "org/name:2")["source"] == "from the hub 1 org/name train"
    assert prepare.run([f"{rows}[10:13]", "org/name"], {"split": False}, tmp_path / "out")["reused"]
    monkeypatch.setattr(Hub, "said", "changed on the hub")
    assert "sources: org/name of " in refused([f"{rows}[10:13]", "org/name"], {"split": False}, tmp_path / "out")
    assert report["rows"]["kept"] == 7


def test_a_model_that_is_not_there_is_said_before_any_row_is_read(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.ingest, "read", lambda *_: pytest.fail("a row was read"))
    assert "nowhere" in refused(rows, {}, tmp_path / "out", model=str(tmp_path / "nowhere"))


def test_a_file_that_an_option_names_is_part_of_the_recipe(rows, write, tmp_path, monkeypatch):
    def against(rows: Rows, *, files: list[str]) -> dict:
        return {}

    monkeypatch.setitem(recipe.all_steps(), "against", step(50, against, False))
    named = write("eval.jsonl", [{"text": "a"}])
    section = {"against": {"files": [named]}}
    prepare.run(rows, section, tmp_path / "out")
    assert prepare.run(rows, section, tmp_path / "out")["reused"]
    write("eval.jsonl", [{"text": "b"}])
    assert f"files: {named} of 14 bytes" in refused(rows, section, tmp_path / "out")
    assert "against: files is missing" in refused(rows, {"against": True}, tmp_path / "new")


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"shrt": True}, 'prepare: there is no step "shrt". Did you mean "short"?'),
        ({"short": {"leest": 3}}, 'prepare: short: unknown key "leest". Did you mean "least"?'),
        ({"short": {"least": "many"}}, "prepare: short: least should be a whole number, found 'many'."),
        ({"short": 3}, "prepare: short is 3, expected true, false or a mapping of options."),
        ([1], "prepare is [1], expected steps"),
        ({"restore": ["rows.jsonl"]}, "prepare: restore should be a list of rows as [rows.jsonl:12]"),
        ({"restore": ["rows.jsonl:²"]}, "prepare: restore should be a list of rows as [rows.jsonl:12]"),
        ({"split": {"folds": 3, "validation": 1}}, "split.folds validates on each part in turn"),
    ],
)
def test_a_wrong_section_is_refused_before_any_row_is_read(section, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.ingest, "read", lambda *_: pytest.fail("a row was read"))
    assert sentence in refused("nowhere.jsonl", section, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_checked_section_is_checked_to_the_same(tmp_path):
    once = prepare.check_section({"short": True, "split": {"test": 3}, "restore": ["b:2", "a:10", "a:9", "b:2"]})
    assert prepare.check_section(once) == once
    assert once["restore"] == ["a:9", "a:10", "b:2"]


def test_a_prepared_set_is_made_once_for_the_same_sources_and_recipe(rows, write, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    other = write("other.jsonl", [{"text": f"other text {i}"} for i in range(30)])
    heard = []
    folder = prepare.prepared([rows, {"path": other, "weight": 3}], {}, 0, [heard.append])
    assert prepare.prepared([rows, {"path": other, "weight": 3}], {}, 0) == folder
    assert folder.parent == tmp_path / "cache" / "prepared"
    assert sum(e["event"] == "read" for e in heard) == 1
    texts = [[r["text"] for p in folder.glob(f"source-{i}/*.jsonl") for r in lines(p)] for i in (1, 2)]
    assert (len(texts[0]), len(texts[1])) == (50, 30)
    assert all(t.startswith("other") for t in texts[1])
    with open(other, "a") as f:
        f.write('{"text": "other text more"}\n')
    assert prepare.prepared([rows, {"path": other, "weight": 3}], {}, 0) != folder


def test_rows_made_by_a_step_go_with_the_source_they_were_made_from(write, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    two = [write("a.jsonl", [{"text": "say a"}, {"text": "nothing"}]), write("b.jsonl", [{"text": "say b"}])]
    folder = prepare.prepared(two, {"louder": True, "split": False})
    assert [r["text"] for r in lines(folder / "source-1/train.jsonl")] == ["say a!", "nothing", "quiet say a 0"]
    assert [r["text"] for r in lines(folder / "source-2/train.jsonl")] == ["say b!", "quiet say b 0"]


def test_sets_used_longest_ago_leave_the_cache(rows, tmp_path, monkeypatch):
    import time

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    folders = [prepare.prepared(rows, {}, seed) for seed in range(3)]
    for folder, days in zip(folders, (9, 5, 0.5), strict=True):
        os.utime(folder, (time.time() - days * 86_400,) * 2)
    size = sum(f.stat().st_size for f in folders[0].iterdir())
    monkeypatch.setattr(work, "MOST_BYTES", int(3.5 * size))
    for name, days in (("a.partial", 2), ("b.partial", 0)):
        (folders[0].parent / name).mkdir()
        os.utime(folders[0].parent / name, (time.time() - days * 86_400,) * 2)
    (folders[0].parent / "c.partial").mkdir()
    with work.opened(folders[0].parent / "c"):  # one has worked in it for two days
        os.utime(folders[0].parent / "c.partial", (time.time() - 2 * 86_400,) * 2)
        newest = prepare.prepared(rows, {}, 3)  # the fourth: the one used longest ago goes
    assert [f.exists() for f in (*folders, newest)] == [False, True, True, True]
    assert sorted(p.name for p in newest.parent.glob("*.partial")) == ["b.partial", "c.partial"]
    monkeypatch.setattr(work, "MOST_BYTES", 0)
    newer = prepare.prepared(rows, {}, 4)  # but none that a run may be reading
    assert [f.exists() for f in (*folders, newest, newer)] == [False, False, True, True, True]


def test_the_command_line(rows, tmp_path, tunesmith_cli, refused):
    out = tmp_path / "out"
    code, said, err = tunesmith_cli(
        "data", "prepare", rows, "--output", out, "--set", "short.least=2", "--set", "split=false"
    )
    assert code == 0, err
    assert f"read {rows}: 52 rows of the format text (has text)" in said
    assert "short             51 kept, 1 dropped" in said
    assert f"  {out}/train.jsonl         50 rows" in said
    assert f"next     tunesmith train --data {out}" in said
    code, said, err = tunesmith_cli(
        "data", "prepare", rows, "--output", out, "--set", "short.least=2", "--set", "prepare.split=false", "--json"
    )
    report = json.loads(said)
    assert (report["reused"], report["rows"]["kept"], report["output"]) == (True, 50, str(out))
    assert "Did you mean" in refused("data", "prepare", rows, "--output", out, "--set", "short.leasd=2")
    assert "--output" in refused("data", "prepare", rows)


def test_a_run_file_names_data_and_steps(rows, write, tmp_path, tunesmith_cli, refused):
    run = write(
        "run.yaml",
        yaml.safe_dump({"data": rows, "prepare": {"short": {"least": 2}, "split": False}, "train": {"seed": 7}}),
    )
    code, said, err = tunesmith_cli(
        "data", "prepare", run, "--output", tmp_path / "out", "--set", "same=false", "--json"
    )
    assert code == 0, err
    assert [s["name"] for s in json.loads(said)["steps"]] == ["short"]
    made = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert (made["seed"], made["prepare"]["short"]) == (7, {"least": 2})
    assert "names its data itself" in refused("data", "prepare", run, rows, "--output", tmp_path / "other")
    assert 'has no "data" section' in refused(
        "data", "prepare", write("no.yaml", "prepare: {}"), "--output", tmp_path / "other"
    )
