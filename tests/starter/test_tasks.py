"""The families and the other data sets: right by their own rules, the same for the same seed, and split without leaks."""

import json
from random import Random

import pytest

from tunesmith.evaluation.rules import check, check_rule
from tunesmith.starter import world, write_data
from tunesmith.starter.tasks import FAMILIES, answer_text, rows


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starter")
    paths = write_data(folder, seed=3, n_train=3000, n_heldout=250)
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}


def prompt(row):
    return json.dumps(row.get("prompt") or row["messages"][:-1])


def test_same_seed_same_bytes_and_another_seed_other_rows(tmp_path):
    one, two, other = (
        write_data(tmp_path / n, seed=s, n_train=300, n_heldout=40) for n, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(one[n].read_bytes() == two[n].read_bytes() for n in one)
    assert all(one[n].read_bytes() != other[n].read_bytes() for n in one)


def test_every_answer_earns_its_full_score(sets):
    for row in sets["train"] + sets["heldout"] + sets["chats"]:
        assert check(answer_text(row), row["check"]) == 1, row


def test_held_out_rows_share_neither_prompt_nor_item_with_any_other_set(sets):
    held_prompts = {prompt(r) for r in sets["heldout"]}
    held_items = {i for r in sets["heldout"] for i in r["items"]}
    assert len(held_prompts) == len(sets["heldout"]) == 250
    for name in sets.keys() - {"heldout"}:
        assert sets[name], name
        assert not held_prompts & {prompt(r) for r in sets[name]}, name
        assert not held_items & {i for r in sets[name] for i in r["items"]}, name


def test_another_seed_keeps_the_split(sets):
    held_items = {i for r in rows(99, 400, held=True) for i in r["items"]}
    assert not held_items & {i for r in sets["train"] for i in r["items"]}


def test_families_are_ten_and_even(sets):
    counts = {name: sum(r["category"] == name for r in sets["heldout"]) for name in FAMILIES}
    assert len(counts) == 10
    assert set(counts.values()) == {25}
    assert {"chat", *FAMILIES} == {r["category"] for r in sets["train"]}


def test_tools_are_in_openai_form(sets):
    row = next(r for r in sets["train"] if r["category"] == "tool")
    call = row["messages"][-1]["tool_calls"][0]["function"]
    assert call["name"] in [t["function"]["name"] for t in row["tools"]]
    assert json.loads(call["arguments"]) == row["check"]["arguments"]
    spec = next(t["function"] for t in row["tools"] if t["function"]["name"] == call["name"])
    assert spec["parameters"]["required"] == list(row["check"]["arguments"])


def test_chats_have_a_system_message_and_several_turns(sets):
    for row in sets["chats"]:
        roles = [m["role"] for m in row["messages"]]
        assert roles[0] == "system"
        assert len(roles) >= 5
        assert roles[1:] == ["user", "assistant"] * (len(roles) // 2)


def test_preferences_are_a_thousand_and_the_rejected_answer_fails_where_the_chosen_one_does_not(sets):
    made = {prompt(r): r for r in rows(5, 3000, held=False)}  # the generator's checks are functions of the prompt
    assert len(sets["preferences"]) >= 1000
    checked = 0
    for row in sets["preferences"]:
        assert row["chosen"] != row["rejected"]
        rule = made.get(json.dumps(row["prompt"]), {}).get("check")
        if rule:
            checked += 1
            assert check(answer_text({"messages": row["chosen"]}), rule) == 1
            assert check(answer_text({"messages": row["rejected"]}), rule) < 1
    assert checked > 100


def test_verdicts_are_good_and_bad_in_like_number(sets):
    good = sum(r["label"] for r in sets["verdicts"])
    assert 0.4 < good / len(sets["verdicts"]) < 0.6


def test_rewards_carry_a_rule_that_is_one(sets):
    for row in sets["rewards"]:
        check_rule(row["check"])
        assert row["prompt"][-1]["role"] == "user"


def test_the_split_is_about_a_fifth_and_does_not_depend_on_anything_drawn():
    share = sum(world.held_out("kind", i) for i in range(5000)) / 5000
    assert 0.18 < share < 0.22
    assert world.held_out("define", "kitchen") == world.held_out("define", "kitchen")
    made = {world.draw(Random(s), "define", True, lambda r: r.choice(list(world.DEFINITIONS))) for s in range(50)}
    assert all(world.held_out("define", word) for word in made)
