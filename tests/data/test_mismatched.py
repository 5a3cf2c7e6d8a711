"""Mismatched answers: every row gets one to another prompt, every answer is given once where that can be, by the rows alone."""

import numpy as np
import pytest

from tunesmith.data.kinds import as_kind
from tunesmith.data.mismatched import Mismatched, donors, values
from tunesmith.data.records import Origin, Preference, Verdict


def u(text):
    return [{"role": "user", "content": text}]


def a(text):
    return [{"role": "assistant", "content": text}]


def rows(*pairs):
    return [Verdict(u(p), a(x), True, Origin("v.jsonl", i + 1)) for i, (p, x) in enumerate(pairs)]


def test_different_prompts_rotate_by_one():
    """TRL's pairing: (x1, yN), (x2, y1), ..."""
    given = rows(("p", "1"), ("q", "2"), ("r", "3"))
    assert donors(given).tolist() == [2, 0, 1]
    found = Mismatched(given)
    assert [found[i] for i in range(3)] == found[:] == list(found)
    assert found[0] == Preference(u("p"), [a("1"), a("3")], given[0].origin)
    assert [p.answers[1] for p in found] == [a("3"), a("1"), a("2")]
    assert values(given[0])[0] == 1.0
    assert np.isnan(values(given[0])[1])


def test_both_answers_of_preferences_are_given_on():
    """A rotation by one would give a prompt's second answer its first; by two, good ones stand in for good ones."""
    preferences = [Preference(u(str(i)), [a(f"g{i}"), a(f"b{i}")], Origin("p.jsonl", i + 1)) for i in range(3)]
    given = [verdict for p in preferences for verdict in as_kind(p, "verdict")]
    assert [p.answers[1][0]["content"] for p in Mismatched(given)] == ["g2", "b2", "g0", "b0", "g1", "b1"]


@pytest.mark.parametrize("seed", range(5))
def test_any_set_without_a_prompt_that_has_half_of_it(seed):
    """Answers of a few words to prompts of very different counts, shuffled: a permutation, never within a prompt."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, 40, 400)
    prompts[:150] = 7
    rng.shuffle(prompts)
    given = rows(*((f"p{p}", f"a{x}") for p, x in zip(prompts, rng.integers(0, 30, 400), strict=True)))
    donor = donors(given)
    assert sorted(donor.tolist()) == list(range(400))
    assert all(given[i].prompt != given[j].prompt and given[i].answer != given[j].answer for i, j in enumerate(donor))
    assert donor.tolist() == donors(given).tolist()


def test_a_prompt_with_more_than_half_of_the_rows_takes_the_others_answers_in_turn():
    given = rows(*((("p", f"{i}") if i < 5 else (f"q{i}", f"{i}")) for i in range(7)))
    donor = donors(given)
    assert set(donor[:5].tolist()) == {5, 6}
    assert np.bincount(donor[:5], minlength=7)[5:].tolist() in ([2, 3], [3, 2])
    assert set(donor[5:].tolist()) <= set(range(5))


def test_equal_answers_are_avoided_as_far_as_the_set_allows():
    """Three say yes and three no: swaps leave none its own. Of five yes and one no, four have to say yes again."""

    def equal(*said):
        given = rows(*((str(i), word) for i, word in enumerate(said)))
        return sum(given[i].answer == given[j].answer for i, j in enumerate(donors(given)))

    assert equal("yes", "yes", "yes", "no", "no", "no") == 0
    assert equal("yes", "yes", "yes", "yes", "yes", "no") == 4
    assert equal("yes", "yes", "yes") == 3


@pytest.mark.parametrize("given", [rows(), rows(("p", "1")), rows(("p", "1"), ("p", "2"))])
def test_where_there_is_nothing_better(given):
    assert sorted(donors(given).tolist()) == list(range(len(given)))


def test_an_empty_answer_is_given_to_nobody():
    """Its own row is left out of the run; another row's would be left out with it."""
    found = donors(rows(("p", "1"), ("q", " "), ("r", "3"), ("s", "4")))
    assert found.tolist() == [3, 1, 0, 2]
    assert donors(rows(("p", ""), ("q", ""))).tolist() == [0, 1]
    assert donors([]).tolist() == []
