"""Best-of-n against counts by hand, its estimators against brute force, and the command line."""

import itertools
import json
import math

import numpy as np
import pytest
from letter_models import save_policy, save_reward

import tunesmith
from builders import byte_tokenizer
from tunesmith.errors import InputError
from tunesmith.rewarding import candidates
from tunesmith.rewarding.best_of import best_of_metrics, expected_best, kl, ranking


def test_the_divergence_by_hand():
    assert kl(1) == 0
    assert kl(4) == pytest.approx(math.log(4) - 3 / 4)


def test_the_divergence_is_that_of_the_best_of_many():
    """Of m equally likely answers without ties the best of n is the r-th with probability (r/m)^n - ((r-1)/m)^n."""
    m, n = 4000, 8
    r = np.arange(1, m + 1) / m
    p = r**n - (r - 1 / m) ** n
    assert float((p * np.log(p * m)).sum()) == pytest.approx(kl(n), abs=2e-3)


def test_the_expected_best_is_the_mean_over_all_choices():
    scores = np.array([0.3, -1.0, 2.0, 0.3, 0.7])
    for k in range(1, 6):
        wanted = np.mean([max(some) for some in itertools.combinations(scores, k)])
        assert expected_best(scores, k) == pytest.approx(wanted)


def test_what_has_no_score_is_never_the_best():
    """Of three, one without a score: of the pairs (1, 2), (1, -), (2, -) the best are 2, 1 and 2."""
    scores = np.array([1.0, np.nan, 2.0])
    assert [expected_best(scores, k) for k in (1, 2, 3)] == pytest.approx([1.5, 5 / 3, 2.0])
    few = np.array([np.nan, 3.0, np.nan, np.nan])
    assert [expected_best(few, k) for k in (1, 2, 4)] == [3.0, 3.0, 3.0]
    assert math.isnan(expected_best(np.array([np.nan]), 1))
    assert expected_best(np.full(2100, 0.5), 1050) == pytest.approx(0.5)  # whose number of choices no float holds


def test_metrics_of_best_of_k():
    metrics = best_of_metrics([np.array([0.0, 1.0, 0.0]), np.array([2.0, 2.0, 2.0]), np.full(3, np.nan)])
    assert list(metrics) == ["reward_best_of_1", "reward_best_of_2", "reward_best_of_3"]
    assert [m["value"] for m in metrics.values()] == pytest.approx([7 / 6, 4 / 3, 3 / 2])
    assert metrics["reward_best_of_3"]["n"] == 2


def test_ranking_leaves_equals_in_order_and_unscored_last():
    assert ranking(np.array([0.0, np.nan, 2.0, 0.0])) == [2, 0, 3, 1]


def test_the_reward_model_picks_the_answer_with_its_letter(policy, reward):
    found = tunesmith.generate(policy, prompt="say it", best_of=8, reward=reward, max_new_tokens=6, seed=1)
    (answer,) = found["answers"]
    candidates = [c for c in answer["candidates"] if c["answer"]]
    shares = [c["answer"].count("x") / (38 + len(c["answer"])) for c in candidates]
    scores = [c["score"] for c in candidates]
    assert scores == sorted(scores, reverse=True)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert (answer["answer"], answer["score"]) == (answer["candidates"][0]["answer"], scores[0])
    assert answer["prompt"] == "say it"
    assert set(answer) == {"prompt", "answer", "score", "candidates"}
    assert found["best_of"] == 8
    assert found["kl"] == kl(8)
    assert found["metrics"]["reward_best_of_8"]["value"] == pytest.approx(scores[0])
    assert found["metrics"]["reward_best_of_1"]["value"] == pytest.approx(np.mean(scores))


def test_it_is_repeatable_and_more_answers_change_none(policy, reward, rows):
    data = rows({"prompt": "one"}, {"prompt": "two, and it is longer"}, {"prompt": "one"})
    ways = {"data": data, "reward": reward, "max_new_tokens": 6}
    first = tunesmith.generate(policy, best_of=4, **ways)["answers"]
    assert first == tunesmith.generate(policy, best_of=4, **ways)["answers"]
    assert [(a["row"], a["prompt"]) for a in first] == [(1, "one"), (2, "two, and it is longer"), (3, "one")]
    assert first[0]["candidates"] != first[2]["candidates"]  # asked twice, two draws
    more = tunesmith.generate(policy, best_of=8, **ways)["answers"]
    for few, many in zip(first, more, strict=True):
        assert {c["answer"] for c in few["candidates"]} <= {c["answer"] for c in many["candidates"]}
    assert first != tunesmith.generate(policy, best_of=4, seed=5, **ways)["answers"]


def test_an_empty_answer_is_never_the_best(reward, tmp_path):
    """A policy that mostly says nothing; the shorter a conversation, the more this reward model sees of its letter."""
    quiet = save_policy(tmp_path / "quiet", {"a": 0.3, "<|im_end|>": 0.7})
    found = tunesmith.generate(quiet, prompt="x", best_of=8, reward=reward, max_new_tokens=6)
    candidates = found["answers"][0]["candidates"]
    assert {c["answer"] for c in candidates if c["score"] is None} == {""}
    assert found["answers"][0]["answer"] == "a"
    silent = save_policy(tmp_path / "silent", {"<|im_end|>": 1.0})
    found = tunesmith.generate(silent, prompt="x", best_of=2, reward=reward, max_new_tokens=6)
    assert (found["answers"][0]["answer"], found["answers"][0]["score"], found["metrics"]) == ("", None, {})


def test_a_rule_of_the_row_is_a_reward(policy, rows):
    check = {"rule": "exact", "answers": ["a", "x", "aa", "aaa"]}
    data = rows({"prompt": "one", "check": check}, {"prompt": "two", "check": {"rule": "exact", "answers": ["never"]}})
    found = tunesmith.generate(policy, data=data, reward="rule", best_of=16, max_new_tokens=6)
    assert [a["score"] for a in found["answers"]] == [1.0, 0.0]
    assert found["answers"][0]["answer"] in check["answers"]


def test_the_command_line(policy, reward, tunesmith_cli):
    ask = ("generate", policy, "--prompt", "go", "--best-of", 4, "--reward", reward, "--max-new-tokens", 6)
    code, out, err = tunesmith_cli(*ask, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["answers"][0]["candidates"]) == found["best_of"] == 4
    assert "best-of-4: at most 0.636 nats from the model it samples from (log 4 - 3/4)" in err
    code, out, _ = tunesmith_cli(*ask)
    best = found["answers"][0]
    assert (code, out.strip()) == (0, f"[reward {best['score']:.4g}] {best['answer']}")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"best_of": 3}, "takes a reward: name a reward model's folder, or `rule`"),
        ({"reward": "rule"}, "the reward rule chooses among several answers; say of how many with --best-of N"),
        ({"best_of": 0, "reward": "rule"}, "best_of is 0; it must be at least 1"),
        ({"best_of": 3, "reward": "rule", "temperature": 0.0}, "the best of 3 takes a temperature above 0"),
        ({"best_of": 3, "reward": "rule", "top_p": 0.0}, "top_p is 0"),
        ({"best_of": 3, "reward": "rule", "seed": -1}, "seed is -1; it must be 0 or more"),
        ({"temperature": 1.0, "seed": -1}, "seed is -1; it must be 0 or more"),
        ({"best_of": 3, "reward": "rule"}, "scores an answer by what its row says; give --data"),
        ({"best_of": 3, "reward": "perplexity"}, "the metric perplexity scores no single answer; .* exact_match, rule"),
        ({"best_of": 3, "reward": "rlue"}, 'Did you mean "rule"'),
    ],
)
def test_what_is_wrong_is_said(policy, given, sentence):
    with pytest.raises(InputError, match=sentence):
        tunesmith.generate(policy, prompt="hi", **given)


def test_models_of_the_wrong_kind_are_refused(policy, reward, tmp_path, refused):
    said = refused("generate", policy, "--prompt", "hi", "--best-of", 2, "--reward", policy)
    assert policy in said
    assert "is no reward model" in said
    said = refused("generate", reward, "--prompt", "hi", "--best-of", 2, "--reward", reward)
    assert reward in said
    assert "is a reward model" in said


def test_rows_that_the_reward_cannot_score_are_named(policy, rows):
    data = rows({"prompt": "one", "check": {"rule": "exact", "answers": ["a"]}}, {"prompt": "two"})
    with pytest.raises(InputError, match=r"rows.jsonl, row 2: the reward rule has nothing to score an answer by"):
        tunesmith.generate(policy, data=data, best_of=2, reward="rule")
    data = rows({"prompt": "one", "check": {"rule": "exactly"}})
    with pytest.raises(InputError, match=r'rows.jsonl, row 1: there is no rule named "exactly"'):
        tunesmith.generate(policy, data=data, best_of=2, reward="rule")
    with pytest.raises(InputError, match="row 1 is plain text, which asks nothing"):
        tunesmith.generate(policy, data=rows({"text": "once"}), best_of=2, reward="rule")
    with pytest.raises(InputError, match=r"row 1: the prompt has \d+ tokens, the model's context is 256"):
        tunesmith.generate(
            policy, data=rows({"prompt": "a" * 300, "check": {"rule": "exact"}}), best_of=2, reward="rule"
        )


def test_what_the_reward_model_cannot_read_is_said_before_anything_is_sampled(policy, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "sample", lambda *_: pytest.fail("sampled"))
    folder = save_reward(tmp_path / "strict")
    byte_tokenizer(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not no') }}{% endif %}{{ m.content }}{% endfor %}"
    ).save_pretrained(folder)
    with pytest.raises(InputError, match=r"rows.jsonl, row 2: the model's chat template refuses .*not no"):
        tunesmith.generate(policy, data=rows({"prompt": "yes"}, {"prompt": "no"}), best_of=2, reward=folder)
    short = save_reward(tmp_path / "short", max_position_embeddings=20)
    with pytest.raises(InputError, match=r"longer than the context of the reward model .* \(20 tokens\)"):
        tunesmith.generate(policy, prompt="hi", best_of=2, reward=short)


def test_a_prompt_that_leaves_no_room_is_told_and_costs_no_other_its_answer(policy, rows, tmp_path):
    short = save_reward(tmp_path / "short", max_position_embeddings=60)
    data = rows({"prompt": "hi"}, {"prompt": "a" * 60})
    found = tunesmith.generate(policy, data=data, best_of=8, reward=short, max_new_tokens=4)
    assert [a["score"] is None for a in found["answers"]] == [False, True]
    assert found["metrics"]["reward_best_of_8"]["n"] == 1
    (said,) = [n for n in found["notices"] if "1 of 2 prompts have no answer" in n]
    assert said.endswith("the first is " + f"{data}, row 2")
