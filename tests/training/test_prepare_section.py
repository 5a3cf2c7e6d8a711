"""A run file with a section `prepare`: the data is prepared first, once, trained and validated on as split there, and its card kept."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tunesmith
from tunesmith import registry
from tunesmith.config import parse
from tunesmith.data import prepare, sources
from tunesmith.data.content import said
from tunesmith.errors import InputError
from tunesmith.training.dataset import entries
from tunesmith.training.prepare import Prepared


def rows(name: str, n: int) -> list[dict]:
    words = np.random.default_rng(len(name)).permutation(
        ["sun", "moon", "tree", "river", "stone", "cloud", "leaf", "road"]
    )
    return [
        {"instruction": f"{name} {i}: {' '.join(words)} {i * i}", "output": f"{i} {name} is {i + 7}"} for i in range(n)
    ]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """own.jsonl, 40 different rows and 5 that repeat; more.jsonl, 20."""
    own = rows("own", 40)
    for name, content in (("own", own + own[:5]), ("more", rows("more", 20))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("own", "more")}


def only(*steps: str, **more) -> dict:
    return {name: name in steps for name in registry.names("data.steps") if name != "split"} | more


@pytest.fixture
def content(tiny_folder):
    def make(data, section, **changes):
        train = {"device": "cpu", "dtype": "float32", "max_steps": 2, "batch_size": 4}
        return {"model": str(tiny_folder), "data": data, "prepare": section, "train": train, **changes}

    return make


def test_training_and_validation_rows_are_those_of_the_prepared_set(content, files):
    data = [{"path": files["own"], "weight": 2}, {"path": files["more"], "cap": 6}]
    run = Prepared(parse(content(data, only("exact_duplicates"))))
    everything = [said(r) for r in [*run.train_records, *run.held_out]]
    assert sorted(everything) == sorted(
        f"{row['instruction']}\n{row['output']}" for row in rows("own", 40) + rows("more", 20)
    )
    assert len(run.held_out) == 3  # 5% of 60, by prepare's split, and no test set
    own = sum(said(r).startswith("own") for r in run.train_records)
    assert [(m["path"], m["available"], m["examples"]) for m in run.mix] == [
        (files["own"], own, 2 * own),
        (files["more"], 57 - own, 6),
    ]
    assert any(n.startswith("prepared: 60 of 65 records kept (exact_duplicates dropped 5)") for n in run.notices)
    assert any(n.startswith("validation: the 3 rows that prepare held out") for n in run.notices)


def test_a_set_is_prepared_once_and_anew_when_anything_changed(content, files, monkeypatch):
    made = []
    run = prepare._Preparing.run
    monkeypatch.setattr(prepare._Preparing, "run", lambda self: (made.append(self.target), run(self))[1])
    first = entries(parse(content([files["own"]], only("exact_duplicates"))))
    assert entries(parse(content([files["own"]], only("exact_duplicates")))) == first
    assert len(made) == 1
    entries(parse(content([files["own"]], only("exact_duplicates", "quality"))))
    assert len(set(made)) == 2
    with Path(files["own"]).open("a") as f:
        f.write('{"instruction": "one more", "output": "yes"}\n')
    entries(parse(content([files["own"]], only("exact_duplicates"))))
    assert len(set(made)) == 3


def test_validation_of_the_run_file_goes_before_the_default_split(content, files):
    section = only("exact_duplicates")
    run = Prepared(parse(content([files["own"]], section, validation={"fraction": 0.25})))
    assert (len(run.train_records), len(run.held_out)) == (30, 10)
    run = Prepared(parse(content([files["own"]], section, validation={"path": files["more"]})))
    assert (len(run.train_records), len(run.held_out)) == (40, 20)
    run = Prepared(parse(content([files["own"]], section, validation=False)))
    assert (len(run.train_records), len(run.held_out)) == (40, 0)
    run = Prepared(parse(content([files["own"]], {**section, "split": {"validation": 4, "test": 6}})))
    assert (len(run.train_records), len(run.held_out)) == (30, 4)
    run = Prepared(parse(content([files["own"]], {**section, "split": False})))
    assert (len(run.train_records), len(run.held_out)) == (38, 2)  # the run's own default
    assert any("2 of 40 rows held out" in n for n in run.notices)


def test_the_card_is_kept_with_the_run_which_is_resumed_with_no_other_section(content, files, tmp_path):
    asked = content([files["own"]], only("exact_duplicates"))
    heard = []
    tunesmith.train(asked, output=str(tmp_path / "run"), listeners=(heard.append,))
    assert heard[0]["message"] == "preparing the data: exact_duplicates over 45 records"
    card = json.loads((tmp_path / "run" / "data-card.json").read_text())
    assert (card["rows"]["records"], card["rows"]["kept"]) == (45, 40)
    stored = parse({**asked, "output": str(tmp_path / "run")})
    assert stored.prepare == asked["prepare"]
    with pytest.raises(InputError, match=r"was begun with prepare\.quality = False, now it is True"):
        tunesmith.train({**asked, "prepare": {"quality": True}}, output=str(tmp_path / "run"), resume=True)


def test_a_run_whose_prepared_set_left_the_cache_is_resumed_on_the_same_bytes(content, files, tmp_path):
    asked = content([files["own"], {"path": files["more"], "weight": 0.5}], only("exact_duplicates"))
    asked["train"] |= {"max_steps": 6, "checkpoint_every": 1, "evaluate_every": 9}

    def losses(output, resume=False, stop=None):
        told = []

        def listen(event):
            told.append(event)
            if event["event"] == "step" and event["step"] == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            tunesmith.train(asked, output=str(tmp_path / output), resume=resume, listeners=(listen,))
        return [e["loss"] for e in told if e["event"] == "step"]

    whole = losses("whole")
    assert losses("cut", stop=3) == whole[:3]
    shutil.rmtree(tmp_path / "cache")
    again = losses("cut", resume=True)
    assert again == whole[-len(again) :]
    assert len(again) >= 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prepare": {"qality": True}}, 'there is no step "qality". Did you mean "quality"?'),
        ({"prepare": {"quality": 3}}, "quality is 3, expected true, false or a mapping of options."),
        ({"prepare": {"quality": {"min_char": 3}}}, 'quality: unknown key "min_char". Did you mean "min_chars"?'),
        ({"prepare": {"split": {"folds": 5}}}, "prepare.split.folds makes sets for cross-validation"),
        (
            {"prepare": {"split": {"validation": 5}}, "validation": {"fraction": 0.1}},
            "prepare.split and validation both",
        ),
    ],
)
def test_a_wrong_section_is_refused_before_anything_is_read(changes, words):
    with pytest.raises(InputError) as e:
        parse({"data": "nothing-there.jsonl", **changes}, "run.yaml")
    assert str(e.value).startswith("run.yaml: ")
    assert words in str(e.value)


def test_a_prepared_folder_brings_its_own_validation_rows(tmp_path, rows_file):
    prepare.run(str(rows_file), {"near_duplicates": False, "exact_duplicates": False}, tmp_path / "set")
    place = str(tmp_path / "set")
    found, _ = entries(parse({"data": place}))
    assert [e["split"] for e in found.validation] == ["validation"]
    assert entries(parse({"data": place, "validation": {"fraction": 0.2}}))[0].validation == []
    assert entries(parse({"data": [place, str(rows_file)]}))[0].validation == []
    loaded = sources.load(place)
    assert {info.path.rsplit("/")[-1] for info in loaded.files} == {"train.jsonl"}
    assert not any("card.json" in notice or "lineage" in notice for notice in loaded.notices)


def test_of_a_prepared_log_the_rows_that_the_objective_reads_are_trained_on(content, tmp_path):
    """A log makes chats, verdicts and pairs, which prepare writes to a file each."""
    log = tmp_path / "log.jsonl"
    turns = [
        [
            {"role": "user", "content": f"what is number {i} of {i * i}?"},
            {
                "role": "assistant",
                "content": f"number {i} is good",
                "rating": "good",
                "regenerations": [f"no {i} idea"],
            },
        ]
        for i in range(30)
    ]
    log.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    run = Prepared(parse(content([str(log)], only())))
    assert len(run.train_records) + len(run.held_out) == 30
    assert len(run.held_out) > 0
    assert {type(r).__name__ for r in [*run.train_records, *run.held_out]} == {"Chat"}
    counts = [n for n in run.notices if n.startswith(f"{log}: left out, because the objective sft does not read it: ")]
    assert len(counts) == 1  # named as the user knows it, not by its place in the cache
    assert f"{len(run.train_records)} preference, {len(run.train_records)} verdict" in counts[0]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "one", "chosen": "two", "rejected": "three"}) + "\n")
    with pytest.raises(InputError) as e:
        Prepared(parse(content([str(log), str(pairs)], only())))
    assert str(e.value).startswith(f"{pairs} holds preference rows; the objective sft reads chat.")
    prepare.run(str(log), only(), tmp_path / "set")
    run = Prepared(parse(content([str(tmp_path / "set")], None)))
    assert {type(r).__name__ for r in [*run.train_records, *run.held_out]} == {"Chat"}
    shutil.rmtree(next((tmp_path / "set").rglob("chat")))
    with pytest.raises(InputError, match=r"holds (preference|verdict) rows; the objective sft reads chat"):
        Prepared(parse(content([str(tmp_path / "set")], None)))


def test_folds_are_named_one_by_one(tmp_path, rows_file):
    prepare.run(
        str(rows_file), {"near_duplicates": False, "exact_duplicates": False, "split": {"folds": 2}}, tmp_path / "set"
    )
    with pytest.raises(InputError, match=r"holds folds.*name one: .*fold-1"):
        sources.load(str(tmp_path / "set"))
    assert len(sources.load(str(tmp_path / "set" / "fold-1")).records) > 0
