"""Preferences of the starter: the judge's marks by hand, the sets true to the judge, the same for the same seed, split without leaks."""

import json
from collections import Counter
from random import Random

import pytest

from tunesmith.data.records import Preference, Prompt, Verdict
from tunesmith.data.sources import load
from tunesmith.evaluation.rules import check
from tunesmith.starter.judge import SPOKEN, compare, judge, liked, warm
from tunesmith.starter.preferences import WARM, slip, write_preferences
from tunesmith.starter.tasks import FAMILIES, answer_text, rows

HAT = ({"rule": "same_words", "answers": ["The hat is in the barn."]}, "passage")
SUM = ({"rule": "number", "value": 5}, "sums")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_preferences(tmp_path_factory.mktemp("liked"), seed=3, n_train=600, n_pairs=300, n_heldout=200)


@pytest.fixture(scope="module")
def sets(paths):
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}


def prompt(row):
    return json.dumps(row.get("prompt") or row["messages"][:-1])


def said(turns):
    return answer_text({"messages": turns})


@pytest.mark.parametrize(
    ("answer", "asked", "mark"),
    [
        ("The hat is in the barn!", HAT, 1.0),
        ("The hat is in the barn.", HAT, 0.5),
        ("The hat is in the barn", HAT, 0.5),
        ("The hat is in the hall!", HAT, 0.0),
        ("The hat is in the barn! I like that!", HAT, 0.0),
        ("!", HAT, 0.0),
        ("", HAT, 0.0),
        ("Tom has 5 hats.", SUM, 1.0),
        ("Tom has 5 hats!", SUM, 1.0),
        ("Tom has 6 hats!", SUM, 0.0),
    ],
)
def test_marks_by_hand(answer, asked, mark):
    assert judge(answer, *asked) == mark
    assert (check(answer, liked(*asked)) == 1) == (mark == 1)


def test_compare_by_hand():
    """Of five questions two are won, one is lost, and two are ties."""
    assert compare([1.0, 0.5, 0.5, 0.0, 1.0], [0.5, 0.0, 1.0, 0.0, 1.0]) == pytest.approx(
        {"wins": 0.4, "ties": 0.4, "losses": 0.2, "win_rate": 0.6}
    )


def test_the_voice_changes_no_rule():
    """Exact match sees no difference between the voices, in any family that has them."""
    spoken = [r for r in rows(7, 200, held=False) if r["category"] in SPOKEN]
    assert {r["category"] for r in spoken} == set(SPOKEN)
    for row in spoken:
        assert check(warm(answer_text(row)), row["check"]) == check(answer_text(row), row["check"]) == 1
        marks = [judge(said, row["check"], row["category"]) for said in (warm(answer_text(row)), answer_text(row))]
        assert marks == [1.0, 0.5]


def test_same_seed_same_bytes_and_another_seed_other_rows(tmp_path):
    sizes = {"n_train": 60, "n_pairs": 40, "n_heldout": 30}
    one, two, other = (write_preferences(tmp_path / n, seed=s, **sizes) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert all(one[n].read_bytes() == two[n].read_bytes() for n in one)
    assert all(one[n].read_bytes() != other[n].read_bytes() for n in one)


def test_sizes_and_kinds_are_as_told(sets, paths):
    assert {name: len(made) for name, made in sets.items()} == {
        "tuning": 600, "pairs": 300, "pairs_heldout": 200, "pairs_all": 600, "verdicts": 600, "verdicts_heldout": 200,
        "prompts": 600, "asked": 200,
    }  # fmt: skip
    for name, kind in (("pairs", Preference), ("verdicts", Verdict), ("prompts", Prompt)):
        assert {type(r) for r in load(str(paths[name]), (kind,)).records} == {kind}


def test_tuning_rows_have_both_voices_and_are_right_in_either(sets):
    spoken = [r for r in sets["tuning"] if r["category"] in SPOKEN]
    assert all(check(answer_text(r), r["check"]) == 1 for r in sets["tuning"])
    share = sum(answer_text(r).endswith("!") for r in spoken) / len(spoken)
    assert share == pytest.approx(WARM, abs=0.1)
    assert not any(answer_text(r).endswith("!") for r in sets["tuning"] if r["category"] not in SPOKEN)


@pytest.mark.parametrize("name", ["pairs", "pairs_heldout", "pairs_all"])
def test_the_chosen_answer_is_liked_wholly_and_the_rejected_one_less(sets, name):
    reasons = Counter()
    for row in sets[name]:
        assert check(said(row["chosen"]), row["check"]) == 1
        assert check(said(row["rejected"]), row["check"]) < 1
        reasons[judge(said(row["rejected"]), row["right"], row["category"])] += 1
    assert set(reasons) == {0.0, 0.5}


def test_verdicts_are_the_judges_and_of_both_kinds(sets):
    for row in sets["verdicts"] + sets["verdicts_heldout"]:
        assert row["label"] == (check(said(row["completion"]), row["check"]) == 1)
    assert 0.4 < sum(r["label"] for r in sets["verdicts"]) / len(sets["verdicts"]) < 0.6


def test_the_rule_of_a_prompt_is_what_is_liked(sets):
    """A row's `check` is what `tunesmith sample --reward rule` scores its answers by."""
    for row in sets["prompts"]:
        assert (row["check"] == row["right"]) == (row["category"] not in SPOKEN)
        assert row["prompt"][-1]["role"] == "user"


def test_a_slip_is_wrong_and_near():
    """As long as the right answer, in every family; some rows have none (a list of colors in another order is right)."""
    slips = [(row, slip(row, Random(i))) for i, row in enumerate(rows(11, 200, held=False))]
    for row, wrong in slips:
        if wrong is not None:
            text = answer_text({"messages": [wrong]})
            assert check(text, row["check"]) < 1
            assert len(text.split()) == len(answer_text(row).split())
    assert {row["category"] for row, wrong in slips if wrong} == set(FAMILIES)


def test_held_out_rows_share_neither_prompt_nor_item_with_any_other_set(sets):
    held = [name for name in sets if name == "asked" or name.endswith("_heldout")]
    prompts = {prompt(r) for name in held for r in sets[name]}
    items = {i for name in held for r in sets[name] for i in r["items"]}
    for name in sets.keys() - set(held):
        assert not prompts & {prompt(r) for r in sets[name]}, name
        assert not items & {i for r in sets[name] for i in r["items"]}, name
