"""Preparing a set: the files, byte for byte; the folder they go to; the card; and every refusal in one sentence."""

import hashlib
import json

import pytest
from small_set import ODD, content, lines, refused, small_steps

from tunesmith.data import prepare, recipe, sources, work
from tunesmith.data.rows import Rows


@pytest.fixture(autouse=True)
def _steps(monkeypatch):
    found = small_steps()
    monkeypatch.setattr(recipe, "all_steps", lambda: found)


@pytest.fixture
def rows(write) -> str:
    content = [{"text": f"text number {i}"} for i in range(40)] + [{"text": "x"}, {"text": "text number 3"}]
    return write("rows.jsonl", content + [{"text": t + "...", "n": i} for i, t in enumerate(ODD)])


def test_the_files_are_the_rows_byte_for_byte(rows, tmp_path):
    report = prepare.run(rows, {"split": False}, tmp_path / "out")
    wanted = [f"text number {i}" for i in range(40)] + [t + "..." for t in ODD]
    found = lines(tmp_path / "out" / "train.jsonl")
    assert [row["text"] for row in found] == wanted
    assert found[-1] == {"text": "\x7f...", "n": 9}
    raw = (tmp_path / "out" / "train.jsonl").read_bytes()
    assert "Zürich 😀".encode() in raw  # as it is, not escaped
    assert report["rows"] == {
        "read": 52, "broken": 0, "records": 52, "kept": 50, "dropped": 2, "changed": 0, "added": 0, "spared": 0,
    }  # fmt: skip
    file = report["files"][0]
    assert (file["rows"], file["bytes"], file["sha256"]) == (50, len(raw), hashlib.sha256(raw).hexdigest())
    assert not work.beside(tmp_path / "out").exists()


def test_steps_run_in_their_order_with_options_and_are_counted(rows, tmp_path):
    heard = []
    section = {"louder": {"mark": "?"}, "same": False, "short": {"least": 2}, "split": {"validation": 5, "test": 0}}
    report = prepare.run(rows, section, tmp_path / "out", seed=3, listeners=[heard.append])
    assert [e["event"] for e in heard] == ["read", *["begin", "step"] * 3, "written"]
    assert [(s["name"], s["kept"], s["dropped"], s["changed"], s["added"]) for s in report["steps"]] == [
        ("short", 51, 1, 0, 0), ("louder", 51, 0, 0, 0), ("split", 51, 0, 0, 0),
    ]  # fmt: skip
    assert report["steps"][0]["summary"] == "short ones are gone"
    assert report["splits"] == {"train": 46, "validation": 5}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["recipe"]["prepare"] == {
        "short": {"least": 2}, "same": False, "personal_data": False, "louder": {"mark": "?"}, "restore": [],
        "split": {
            "train": None, "validation": 5.0, "test": 0.0, "stratify": None, "group_by": None, "folds": None,
        },
    }  # fmt: skip
    assert card["steps"][0]["reasons"] == [["text of # characters, at least # wanted", 1]]


def test_a_split_set_reads_back_as_training_reads_it(rows, tmp_path):
    prepare.run(rows, {}, tmp_path / "out")
    train, validation, test = (
        sources.load({"path": str(tmp_path / "out"), "split": s}) for s in ("train", "validation", "test")
    )
    sizes = [len(x.records) for x in (train, validation, test)]
    assert sizes == [46, 2, 2]
    assert [r.text for r in train.records] == [r["text"] for r in lines(tmp_path / "out" / "train.jsonl")]
    assert {f.path for f in train.files} == {str(tmp_path / "out" / "train.jsonl")}


def test_the_rows_a_prepared_set_holds_out_are_found(rows, tmp_path):
    for name, split in (("out", {}), ("folds", {"folds": 3}), ("all", False)):
        prepare.run(rows, {"split": split}, tmp_path / name)
    out = str(tmp_path / "out")
    assert work.own_validation({"path": out, "weight": 2}) == {"path": out, "weight": 2, "split": "validation"}
    assert work.own_validation({"path": str(tmp_path / "folds" / "fold-1")})["split"] == "validation"
    assert work.own_validation({"path": str(tmp_path / "all")}) is None
    assert work.own_validation({"path": rows}) is None
    assert work.own_validation({"path": str(tmp_path)}) is None


def test_several_kinds_have_a_folder_each(write, tmp_path):
    both = [
        write("a.jsonl", [{"text": f"text {i}"} for i in range(3)]),
        write("b.jsonl", [{"prompt": "q", "completion": "a"}]),
    ]
    prepare.run(both, {"short": False, "same": False, "split": False}, tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == [
        "card.json", "chat/train.jsonl", "lineage.parquet", "recipe.yaml", "text/train.jsonl",
    ]  # fmt: skip
    assert lines(tmp_path / "out/chat/train.jsonl") == [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ]


def test_folds_have_a_folder_each_and_every_row_is_validated_once(rows, tmp_path):
    prepare.run(rows, {"split": {"folds": 3, "test": 5}}, tmp_path / "out")
    out = tmp_path / "out"
    validated = [row["text"] for i in (1, 2, 3) for row in lines(out / f"fold-{i}/validation.jsonl")]
    held = [row["text"] for row in lines(out / "test.jsonl")]
    assert len(validated) == len(set(validated)) == 45
    assert len(held) == 5
    for i in (1, 2, 3):
        train, left = ([r["text"] for r in lines(out / f"fold-{i}/{name}.jsonl")] for name in ("train", "validation"))
        assert sorted([*train, *left]) == sorted(validated)
        assert not set(held) & set(train)


def test_the_same_call_twice_does_nothing_and_a_damaged_file_is_made_anew(rows, tmp_path):
    out = tmp_path / "out"
    first = prepare.run(rows, {}, out)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    again = prepare.run(rows, {}, out)
    assert (first["reused"], again["reused"], again["sha256"]) == (False, True, first["sha256"])
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()} == before
    wanted = content(out)
    (out / "train.jsonl").write_text("{}\n")
    report = prepare.run(rows, {}, out)
    assert report["notices"] == [f"{out / 'train.jsonl'} is not as it was written; the set is made anew"]
    assert content(out) == wanted


def test_a_set_by_another_recipe_is_replaced_only_by_force(rows, tmp_path):
    out = tmp_path / "out"
    prepare.run(rows, {}, out)
    before = content(out)
    assert refused(rows, {"short": {"least": 1}}, out) == (
        f"{out} holds a set by another recipe (prepare.short.least 3, now 1); choose another --output, or replace it with --force."
    )
    assert "seed 0, now 1" in refused(rows, {}, out, seed=1)
    with open(rows, "a") as f:
        f.write('{"text": "one more row"}\n')
    assert f"sources: {rows} of " in refused(rows, {}, out)
    assert content(out) == before
    prepare.run(rows, {"short": {"least": 1}}, out, force=True)
    prepare.run(rows, {"short": {"least": 1}}, tmp_path / "other")
    assert content(out) == content(tmp_path / "other")
    (out / "notes.txt").write_text("mine")
    assert "notes.txt is no file of its set" in refused(rows, {}, out, force=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_what_is_no_prepared_set_is_never_touched(rows, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for force in (False, True):
        said = refused(rows, {}, tmp_path / "mine", force=force)
        assert (
            said
            == f"the output folder {tmp_path / 'mine'} is not empty and holds no prepared set; choose another --output."
        )
    assert "is a file; choose another --output" in refused(rows, {}, rows)
    assert "has no name of its own" in refused(rows, {}, "/")
    assert prepare.run(rows, {}, tmp_path / "empty")["rows"]["kept"] == 50
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_broken_rows_are_dropped_with_their_reason_and_counted(write, tmp_path):
    path = write(
        "b.jsonl",
        '{"text": "good one"}\n{"text": \n{"txt": "secret 123"}\n\n{"text": 12345678}\n{"text": "good two"}\n',
    )
    report = prepare.run(path, {"split": False}, tmp_path / "out")
    assert (report["rows"]["read"], report["rows"]["broken"], report["rows"]["kept"]) == (5, 3, 2)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert [(b["row"], b["reason"].split(" (")[0]) for b in card["broken"]] == [
        (2, "line 2 is broken JSON"),
        (3, 'field "text" is missing. Did you mean "txt"?'),
        (5, 'field "text" is a number, expected a string.'),
    ]
    assert "12345678" not in json.dumps(card)
    assert "secret" not in json.dumps(card)


def test_a_file_of_broken_rows_alone_stops_with_the_first(write, rows, tmp_path):
    assert "row 1: line 1 is broken JSON" in refused([rows, write("b.jsonl", '{"text\n{"te\n')], {}, tmp_path / "out")
    assert "those of no known format" in refused([rows, write("c.jsonl", [{"a": 1}])], {}, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_interrupted_preparation_goes_on_after_the_last_finished_step(rows, tmp_path, monkeypatch):
    """What the interrupted step had done is forgotten, what those before it had done is not done again."""

    def interrupted(rows: Rows, *, mark: str = "!", seed: int = 0) -> dict:
        rows.drop(0, "half done")
        rows.change(1, rows[2], "half done")
        raise KeyboardInterrupt

    prepare.run(rows, {"louder": True}, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(recipe.all_steps()["louder"], "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(rows, {"louder": True}, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    heard = []
    report = prepare.run(rows, {"louder": True}, tmp_path / "out", listeners=[heard.append])
    assert [e["step"] for e in heard if e["event"] == "begin"] == ["louder", "split"]
    assert report["notices"] == ["an interrupted preparation is continued after the step same"]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_another_recipe_starts_anew_and_says_so(rows, tmp_path, monkeypatch):
    def interrupted(rows: Rows) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(recipe.all_steps()["same"], "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(rows, {}, tmp_path / "out")
    report = prepare.run(rows, {"short": {"least": 2}}, tmp_path / "out")
    assert report["notices"] == ["an interrupted preparation is not continued: prepare.short.least 3, now 2 changed"]
    prepare.run(rows, {"short": {"least": 2}}, tmp_path / "other")
    assert content(tmp_path / "out") == content(tmp_path / "other")


def test_a_second_process_is_told_to_wait(rows, tmp_path):
    with work.opened(tmp_path / "out"):
        assert "another process is preparing" in refused(rows, {}, tmp_path / "out")


def test_who_waited_for_a_folder_that_is_gone_takes_the_new_one(tmp_path):
    """The lock he opened is no longer the folder's: a third process has made another by that name."""
    folder = work.beside(tmp_path / "out")
    with work.opened(tmp_path / "out") as first, (folder / "lock").open("a") as mine:
        assert work._is(folder / "lock", mine)
        work.discard(first)
        assert not work._is(folder / "lock", mine)
        folder.mkdir()
        (folder / "lock").touch()
        assert not work._is(folder / "lock", mine)


def test_a_source_that_changes_while_it_is_read_is_refused(rows, tmp_path, monkeypatch):
    def writing(*_args, **_options):
        with open(rows, "a") as f:
            f.write('{"text": "one more row"}\n')
        return read(*_args, **_options)

    read = prepare.ingest.read
    monkeypatch.setattr(prepare.ingest, "read", writing)
    assert refused(rows, {}, tmp_path / "out") == f"{rows} changed while it was read; call again when nobody writes it."


def test_a_set_is_never_written_among_its_sources(rows, tmp_path):
    out = tmp_path / "out"
    prepare.run(rows, {}, out)
    before = content(out)
    for source, target in ((str(tmp_path), tmp_path / "new"), (str(out), out), (str(out / "train.jsonl"), out)):
        assert "lie in each other; choose another --output." in refused(source, {}, target, force=True)
    assert content(out) == before
    assert prepare.run(str(out), {}, tmp_path / "new")["rows"]["read"] == 46


@pytest.mark.parametrize("target", ["rows/out", "link/out", "rows/../rows/out"])
@pytest.mark.parametrize(
    ("source", "taken_in"),
    [
        ("rows", True), ("link", True), ("rows/../rows", True), ("rows[:50]", True), ("rows/**/*.jsonl", True),
        ("**/*.jsonl", True), ("rows/*/*.jsonl", True), ("r*/*/*.json*", True),
        ("rows/*.jsonl", False), ("rows/a.jsonl", False), ("rows/a*/*.jsonl", False),
    ],
)  # fmt: skip
def test_nor_where_its_sources_would_take_it_in_the_next_time(source, taken_in, target, write, tmp_path, monkeypatch):
    write("rows/a.jsonl", [{"text": f"text {i}"} for i in range(9)])
    write("rows/abc/b.jsonl", [{"text": f"text {i}"} for i in range(9)])
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    if taken_in:
        assert "lie in each other; choose another --output." in refused(source, {}, target)
        assert not (tmp_path / "rows" / "out").exists()
    else:
        prepare.run(source, {}, target)
        assert prepare.run(source, {}, target)["reused"]


def test_no_row_left_is_a_sentence(rows, tmp_path):
    assert refused(rows, {"short": {"least": 1000}}, tmp_path / "out") == (
        "prepare: the step short left no row; loosen its options, or switch it off."
    )


def test_fields_that_json_cannot_say(tmp_path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "text": ["one text", "two text"],
        "day": [datetime.date(2026, 1, 2)] * 2,
        "raw": [b"x"] * 2,
        "x": [float("nan"), 1.5],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    report = prepare.run(str(tmp_path / "t.parquet"), {"split": False}, tmp_path / "out")
    assert lines(tmp_path / "out" / "train.jsonl") == [
        {"text": "one text", "day": "2026-01-02", "x": None}, {"text": "two text", "day": "2026-01-02", "x": 1.5},
    ]  # fmt: skip
    assert report["notices"] == [
        'the field "raw" of 2 rows is left out: a value of type bytes cannot be written as JSON'
    ]


def test_the_card_shows_lengths_categories_samples_and_duplicates(write, tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Data\n")
    content = [{"text": f"text {i:04}", "category": "ab"[i % 2]} for i in range(40)]
    content += [
        {"text": "text 0007", "category": "a"},
        {"text": "x", "category": "c"},
        {"text": "ask Jane: +1 202 456 1111 or jane@white-house.org"},
    ]
    path = write("rows.jsonl", content)
    prepare.run(
        [path, {"path": write("two/more.jsonl", [{"text": "more text"}]), "licence": "MIT"}],
        {},
        tmp_path / "out",
        model="starter",
    )
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert [(s["rows"], s["format"], s["licence"]) for s in card["sources"]] == [
        (43, "text", "cc-by-4.0"),
        (1, "text", "MIT"),
    ]
    lengths = card["lengths"]["characters"]
    assert (lengths["before"]["min"], lengths["after"]["min"]) == (1, 9)
    assert lengths["before"]["total"] == 41 * 9 + 1 + 49 + 9
    assert lengths["after"]["total"] == 40 * 9 + 49 + 9
    assert sum(lengths["after"]["counts"]) == 42
    assert lengths["before"]["counts"][lengths["edges"].index(1)] == 43  # 1 to 9 characters
    assert card["lengths"]["tokens"]["after"]["total"] < card["lengths"]["tokens"]["before"]["total"]
    assert card["categories"] == {"field": "category", "values": [["a", 21, 20], ["b", 20, 20], ["c", 1, 0]]}
    pair = card["duplicates"][0]
    assert (pair["dropped"]["row"], pair["kept"]["row"], pair["similarity"]) == (41, 8, 1.0)
    assert [s["reason"] for s in card["samples"]["dropped"]["short"]] == ["text of 1 characters, at least 3 wanted"]
    assert len(card["samples"]["kept"]) == 8
    everything = (tmp_path / "out" / "card.json").read_text()
    assert "jane@white-house.org" not in everything


def test_samples_never_show_personal_data_though_its_step_is_off(write, tmp_path):
    said = "write to jane@white-house.org, or call +1 202 456 1111, please,"
    prepare.run(
        write("a.jsonl", [{"text": f"{said} {i}"} for i in range(5)] + [{"text": f"{said} 1"}]),
        {"split": False},
        tmp_path / "out",
    )
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert len(card["samples"]["kept"]) == 5
    assert len(card["duplicates"]) == 1
    assert "white-house" not in json.dumps(card)
    assert "456 1111" not in json.dumps(card)
    assert "white-house" in (tmp_path / "out" / "train.jsonl").read_text()  # it was not asked to go


def test_a_link_to_a_folder_is_followed(rows, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert prepare.run(rows, {}, tmp_path / "link")["output"] == str(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "card.json").is_file()


def test_a_card_that_names_files_elsewhere_is_refused(rows, tmp_path):
    prepare.run(rows, {}, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    for path in ("../secret.jsonl", "/etc/passwd"):
        card["files"][0]["path"] = path
        (tmp_path / "out" / "card.json").write_text(json.dumps(card))
        assert "names files outside of its folder" in refused(rows, {}, tmp_path / "out")
