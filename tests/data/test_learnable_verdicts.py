"""Verdicts of one label, or to one prompt, are refused by file, label and remedy; preferences are read as verdicts by themselves."""

import json

import pytest

from tunesmith.data import sources, verdicts
from tunesmith.data.records import Chat, Origin, Preference, Verdict
from tunesmith.errors import InputError


def verdict(label, prompt="p", file="v.jsonl"):
    return Verdict(
        [{"role": "user", "content": prompt}], [{"role": "assistant", "content": "x"}], label, Origin(file, 1)
    )


def said(*records, mismatched=False):
    with pytest.raises(InputError) as error:
        verdicts.check(records, "kto", mismatched)
    return str(error.value)


def test_one_label_is_refused():
    assert said(verdict(True), verdict(True)) == (
        "v.jsonl: all 2 training rows are labelled true (good), and kto learns from both; add bad answers, or train on these with "
        "--objective sft and `as: chat` in their data entry."
    )
    assert said(verdict(False)) == (
        "v.jsonl: the only training row is labelled false (bad), and kto learns from both; add good answers."
    )
    files = [verdict(True, file=f"{i}.jsonl") for i in range(5)]
    assert said(*files).startswith("0.jsonl, 1.jsonl, 2.jsonl, …: all 5 training rows")


def test_one_prompt_is_refused_only_where_answers_are_mismatched():
    verdicts.check([verdict(True), verdict(False)], "bco", False)
    assert said(verdict(True), verdict(False), mismatched=True) == (
        "v.jsonl: all 2 training rows have the same prompt, but kto measures what they are rewarded by from answers to other prompts; "
        "take the objective bco or apo_zero_unpaired, which need none."
    )
    verdicts.check([verdict(True), verdict(False, "q")], "kto", True)


def test_it_reads_no_further_than_it_must():
    def endless():
        yield verdict(True)
        yield verdict(False, "q")
        raise AssertionError("asked for more")

    verdicts.check(endless(), "kto", True)
    verdicts.check([Chat([], [], Origin("c.jsonl", 1))], "kto", True)


PAIR = {"prompt": "p", "chosen": "x", "rejected": "y"}


def written(folder, name, *rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_preferences_are_read_as_verdicts_where_verdicts_are_wanted(tmp_path):
    path = written(tmp_path, "pairs.jsonl", PAIR, {**PAIR, "prompt": "q"})
    loaded = sources.load(path, [Verdict])
    assert [(r.prompt[0]["content"], r.answer[0]["content"], r.good, r.origin.row) for r in loaded.records] == [
        ("p", "x", True, 1), ("p", "y", False, 1), ("q", "x", True, 2), ("q", "y", False, 2),
    ]  # fmt: skip
    assert loaded.kinds == {"verdict"}
    assert (
        loaded.notices[0] == f"{path}: its preferences are read as verdicts, the best answers good and the others bad"
    )
    assert "2 rows of the format preference" in loaded.notices[1]
    assert loaded.notices[1].endswith("read as 4 verdict")


def test_they_stay_preferences_for_everybody_else(tmp_path):
    path = written(tmp_path, "pairs.jsonl", PAIR)
    for reads in (None, [Preference], [Preference, Verdict], [Chat]):
        assert sources.load(path, reads).kinds == {"preference"}
    assert sources.load({"path": path, "as": "preference"}, [Verdict]).kinds == {"preference"}


def test_beside_verdicts_of_the_same_set_preferences_are_not_made_into_more(tmp_path):
    """A prepared log of chats has a file of each kind: the ratings are what was judged."""
    written(tmp_path, "a.jsonl", PAIR)
    written(tmp_path, "b.jsonl", {"prompt": "p", "completion": "z", "label": False})
    assert sources.load(str(tmp_path), [Verdict]).kinds == {"preference", "verdict"}
    both = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert sources.load(both, [Verdict]).kinds == {"verdict"}


def test_verdicts_for_an_objective_over_pairs_name_the_one_that_reads_them(tmp_path):
    loaded = sources.load(
        written(tmp_path, "v.jsonl", {"prompt": "p", "completion": "z", "label": False}), [Preference]
    )
    with pytest.raises(
        InputError, match=r"Train on verdicts with --objective kto, or give rows with prompt, chosen and rejected\."
    ):
        sources.check_objective(loaded, "dpo", [Preference])
