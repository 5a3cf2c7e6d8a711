"""What holds of every prepared set, shown with the real steps on a set in which everything goes wrong that can."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tunesmith.data import prepare, recipe, sources
from tunesmith.data.content import texts
from tunesmith.data.splits import prompt_hash

TOPICS = [
    "bread",
    "cheese",
    "rivers",
    "engines",
    "gardens",
    "stars",
    "music",
    "trains",
    "glass",
    "wool",
    "salt",
    "paper",
]
PLACES = ["Oslo", "Lima", "Cairo", "Delhi", "Perth", "Quito", "Turin", "Porto", "Malmo", "Lyon"]
SECTION = {
    "language": {"keep": ["en"]},
    "augment": {"methods": ["case", "format"], "share": 0.3},
    "balance": {"by": "topic", "mode": "cap", "most": 120},
    "split": {"validation": 0.1, "test": 40, "stratify": "kind", "group_by": "owner", "train": 0.7},
}
PLANTED = [f"anna{i}.berg@haus-bau.de" for i in range(12)]


def facts(rng: random.Random, i: int) -> tuple[str, str]:
    """A question and its answer, most of them unlike all others."""
    topic, place = rng.choice(TOPICS), rng.choice(PLACES)
    numbers = [rng.randrange(10_000) for _ in range(6)]
    asked = f"Case {i}: how was the trade in {topic} at {place} in the year {1000 + numbers[0] % 900}?"
    words = rng.sample(TOPICS + PLACES, 9)
    said = (
        f"They sold {numbers[1]} loads of {words[0]}, took {words[1]} to {words[2]}, and {numbers[2]} of them saw "
        f"{words[3]}, {words[4]} and {words[5]} by {words[6]}, {words[7]} or {words[8]}."
    )
    return asked, said


def messy(folder: Path, count: int) -> list[str]:
    """Three files of three formats and four kinds: repeats, near copies, broken rows, loops, other languages, addresses, logs."""
    rng, earlier = random.Random(5), ("", "")
    lines: dict[str, list[str]] = {"a.jsonl": [], "log.jsonl": [], "pairs.jsonl": []}
    for i in range(count):
        asked, said = facts(rng, i)
        extra = {"topic": rng.choice("abc"), "owner": f"o{i // 3}" if i % 4 == 0 else None, "kind": rng.choice("xy")}
        extra |= {"source": f"mail of {PLANTED[i % 5]}"} if i % 2 else {}
        match i % 10:
            case 1 if i > 20:
                lines["a.jsonl"].append(rng.choice(lines["a.jsonl"]))
                continue
            case 2:
                said = "and so on " * 60
            case 3:
                said += f" Write to {PLANTED[i % 12]}."
            case 4 if i % 40 == 4:
                asked, said = (
                    "Wo liegt das schöne alte Haus am Fluss?",
                    f"Es liegt hinter dem Wald, sagt man, seit {i} Jahren.",
                )
            case 5:
                turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said, "rating": "up",
                          "regenerations": [f"Nobody knows about {asked[:12]}."]}]  # fmt: skip
                lines["log.jsonl"].append(json.dumps({"messages": turns, **extra}))
                continue
            case 6:
                row = {"prompt": asked, "chosen": said, "rejected": "I do not know.", **extra}
                lines["pairs.jsonl"].append(json.dumps(row))
                continue
            case 7 if i % 30 == 7:
                broken = [f'{{"instruction": "{PLANTED[3]}', json.dumps({"instruction": 5, "output": PLANTED[4]})]
                lines["a.jsonl"].append(rng.choice(broken))
                continue
            case 8 if lines["a.jsonl"]:
                said += f" That was case {i}."
            case 9 if i > 20:
                asked, said = earlier
                said = said.replace(" took ", " brought ", 1)
        earlier = asked, said
        lines["a.jsonl"].append(json.dumps({"instruction": asked, "output": said, **extra}))
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    return [str(folder / name) for name in lines]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    folder = tmp_path_factory.mktemp("messy")
    prepare.run(messy(folder, 3000), SECTION, folder / "out", seed=3)
    card = json.loads((folder / "out" / "card.json").read_text())
    return folder / "out", card, pq.read_table(folder / "out" / "lineage.parquet").to_pylist()


def test_every_row_has_one_fate_and_every_line_one_origin(made):
    folder, card, lines = made
    for source in card["sources"]:
        numbers = {x["row"] for x in lines if x["file"] == source["path"]}
        assert numbers == set(range(1, source["rows"] + 1))
    read = [x for x in lines if not json.loads(x["events"])[:1] or json.loads(x["events"])[0]["action"] != "add"]
    assert len({(x["file"], x["row"], x["part"]) for x in read}) == len(read)
    assert [x["id"] for x in lines if x["id"] is not None] == list(
        range(card["rows"]["records"] + card["rows"]["added"])
    )
    kept = Counter((x["output"], x["line"]) for x in lines if x["fate"] == "kept")
    written = {(f["path"], i + 1) for f in card["files"] for i in range(f["rows"])}
    assert set(kept) == written
    assert set(kept.values()) == {1}
    assert all(x["output"] is None and x["step"] and x["reason"] for x in lines if x["fate"] == "dropped")
    for file in card["files"]:
        assert (folder / file["path"]).read_bytes().count(b"\n") == file["rows"]


def test_the_counts_of_the_card_add_up(made):
    _, card, lines = made
    rows = card["rows"]
    assert rows["read"] == sum(s["rows"] for s in card["sources"])
    assert rows["broken"] == sum(s["broken"] for s in card["sources"]) == sum(x["id"] is None for x in lines) > 10
    assert rows["records"] == sum(s["records"] for s in card["sources"])
    assert rows["records"] + rows["added"] == rows["kept"] + rows["dropped"]
    alive = rows["records"]
    for step in card["steps"]:
        alive += step["added"] - step["dropped"]
        assert alive == step["kept"]
        assert step["dropped"] == sum(x["step"] == step["name"] and x["fate"] == "dropped" for x in lines)
    assert alive == rows["kept"] == sum(card["splits"].values()) == sum(card["kinds"].values())
    dropping = {step["name"] for step in card["steps"] if step["dropped"]}
    assert dropping >= {"quality", "language", "exact_duplicates", "near_duplicates", "balance", "split"}
    assert rows["added"] > 100


def test_nothing_that_belongs_together_is_on_two_sides(made):
    folder, card, lines = made
    sides: dict[tuple, set[str]] = {}
    records = {f["path"]: sources.load(str(folder / f["path"])).records for f in card["files"]}
    split = {f["path"]: f["split"] for f in card["files"]}
    for x in lines:
        if x["fate"] != "kept":
            continue
        record, side = records[x["output"]][x["line"] - 1], split[x["output"]]
        keys = [("prompt", prompt_hash(record)), ("row", x["file"], x["row"])]
        keys += [("owner", record.extra["owner"])] if record.extra.get("owner") else []
        keys += [("like", o) for e in json.loads(x["events"]) for o in e["facts"].get("rows", [])]
        for key in keys:
            sides.setdefault(key, set()).add(side)
    assert set(split.values()) == {"train", "validation", "test"}
    assert [key for key, found in sides.items() if len(found) > 1] == []
    assert sum(key[0] == "like" for key in sides) > 50


def test_no_personal_data_is_left_in_any_file(made):
    folder, _, lines = made
    assert not [name for name in PLANTED if name in json.dumps(lines)]
    for path in folder.rglob("*.*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [name for name in PLANTED if name.encode() in data], path


def test_of_rows_left_as_they_are_only_their_files_hold_personal_data(tmp_path):
    """Fields by which rows are sorted are told in the card, and their values are people's too."""
    content = [
        {
            "text": f"Row {i} is about {TOPICS[i % 12]} in {PLACES[i % 10]}",
            "source": PLANTED[i % 3],
            "label2": PLANTED[i % 2],
        }
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    section = dict.fromkeys(recipe.all_steps(), False) | {
        "personal_data": {"mode": "report"},
        "balance": {"by": "label2", "mode": "cap", "most": 15},
        "split": {"stratify": "source"},
    }
    report = prepare.run(str(tmp_path / "rows.jsonl"), section, tmp_path / "out")
    assert report["rows"]["dropped"] == 10
    for path in (tmp_path / "out").iterdir():
        said = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        held = [name for name in PLANTED if name in said]
        assert bool(held) == (path.suffix == ".jsonl"), (path, held)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["categories"] == {"field": "source", "values": [["<EMAIL>", 40, 30]]}
    assert card["steps"][-2]["reasons"] == [['category "<EMAIL>" has # rows, # wanted', 10]]


def test_the_bytes_are_the_same_in_any_process_and_with_any_threads(tmp_path):
    data = messy(tmp_path, 400)
    program = (
        "import json, sys; from tunesmith.data import prepare; "
        "r = prepare.run(json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], 3); print(r['sha256'])"
    )
    found = set()
    for i, threads in enumerate("12"):
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        env |= {"PYTHONHASHSEED": str(i + 1)}
        section = SECTION | {"balance": False, "diversity": True}
        command = [sys.executable, "-c", program, json.dumps(data), json.dumps(section), str(tmp_path / f"out-{i}")]
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
        files = {
            p.relative_to(tmp_path / f"out-{i}"): p.read_bytes()
            for p in (tmp_path / f"out-{i}").rglob("*")
            if p.suffix in (".jsonl", ".yaml", ".parquet")
        }
        found.add((said, tuple(sorted(files.items()))))
    assert len(found) == 1


def test_interrupted_after_each_step_in_turn_it_comes_to_the_same_bytes(tmp_path):
    data = messy(tmp_path, 150)
    section = SECTION | {"balance": False}
    whole = prepare.run(data, section, tmp_path / "whole", seed=3)
    names = ["read", *(step["name"] for step in whole["steps"])]
    began: list[str] = []
    for name in names:

        def stop(event: dict, name: str = name) -> None:
            if event["event"] == "begin":
                began.append(event["step"])
            if event.get("step", event.get("name")) == name or event["event"] == name:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare.run(data, section, tmp_path / "out", 3, [lambda e, s=stop: None if e["event"] == "begin" else s(e)])
        assert not (tmp_path / "out").exists()
    report = prepare.run(data, section, tmp_path / "out", 3, [lambda e: began.append(e["event"])])
    assert "begin" not in began  # every step had been finished by one of the interrupted calls
    assert (report["sha256"], report["files"]) == (whole["sha256"], whole["files"])


ODD = [
    "a\u2028b\u2029c", "one\rtwo\r\nthree\n", "bell \x07 tab\t vertical \x0b form \x0c escape \x1b[1m delete \x7f", "\x85 next line",
    "e\u0301 is not \u00e9", "\u212b \u2126 \ufb01 \u1e9b\u0323", "\ufeff in front", "zero\u200bwidth\u200d\U0001f469\u200d\U0001f4bb", 
    "\u202eright to left",
    "  spaces  ", "\u00a0hard space", "=1+1", '{"json": [1]}', "back\\slash \\u0041", "\U0010ffff", "\ue000", "cafe\u0301" * 50,
]  # fmt: skip


def test_what_needs_no_mending_stays_as_it_is_to_the_byte(tmp_path):
    rows = [
        {"instruction": f"{i} {ODD[i % 17]}", "output": f"{ODD[(i * 7) % 17]} {i}", "note": ODD[i % 17]}
        for i in range(2000)
    ]
    for name, ascii_only in (("a.jsonl", True), ("b.jsonl", False)):
        said = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        (tmp_path / name).write_bytes(said.encode())
        prepare.run(str(tmp_path / name), dict.fromkeys(recipe.all_steps(), False), tmp_path / f"{name}.out")
        lines = (tmp_path / f"{name}.out" / "train.jsonl").read_bytes().split(b"\n")[:-1]
        for row, line in zip(rows, map(json.loads, lines), strict=True):
            assert [m["content"] for m in line["messages"]] == [row["instruction"], row["output"]]
            assert line["note"] == row["note"]


def test_five_thousand_real_rows_stay_as_they_are_to_the_byte(shared, tmp_path):
    """With all the steps that change rows on: what they find nothing in they leave alone."""
    data = str(shared / "data" / "instruction" / "stanford_alpaca_5000" / "alpaca_5000.json")
    section = {name: name in ("repair", "personal_data") for name in recipe.all_steps()}
    prepare.run(data, section, tmp_path / "out")
    before = sources.load(data).records
    after = sources.load(str(tmp_path / "out" / "train.jsonl")).records
    lines = pq.read_table(tmp_path / "out" / "lineage.parquet").to_pylist()
    same = [x for x in lines if x["events"] == "[]"]
    assert len(same) > 4900
    for x in same:
        assert list(texts(after[x["line"] - 1])) == list(texts(before[x["id"]]))
