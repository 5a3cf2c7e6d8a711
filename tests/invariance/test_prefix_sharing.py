"""What the answers to a prompt begin with runs once, forward and backward: losses and gradients are those of each answer run whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import random_answers, random_verdicts, tiny_model, tiny_scorer, with_lora
from steppers import one_step
from tunesmith.model import attention
from tunesmith.model.policy import make_policy
from tunesmith.training import links
from tunesmith.training.arrange import arrange
from tunesmith.training.batch import collate, microbatches

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},  # a window of 8: it begins in the prompt and ends in the answer
    "gemma2": {},
    "gemma3": {},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "phi": {},
    "phi3": {},
    "qwen3_moe": {},
}
DPO = {"name": "dpo", "beta": 0.2}


def with_reference(examples):
    """The examples with a random log-prob of a reference for each scored token."""
    logps = np.random.default_rng(5).normal(-4, 1, int(examples.scored.sum())).astype(np.float32)
    return replace(examples, constants={"reference": logps})


def tokens(examples, capacity, links, whole=True):
    """How many tokens run in a step over all rows."""
    members = examples.members(np.arange(examples.rows))
    arranged = arrange(examples, members, capacity, links, whole)
    return sum(len(collate(examples, *batch).ids) for batch in arranged)


def assert_same(make, examples, section, capacity, bound=1e-5):
    """A step with what is shared run once, and with every answer run whole: the same loss, facts and gradients."""
    loss, gradients, facts, parts = one_step(make(), examples, section, capacity)
    wanted, each, wanted_facts, _ = one_step(make(), examples, section, capacity, links=False)
    assert parts > 1
    assert loss == pytest.approx(wanted, rel=bound, abs=bound)
    assert facts == pytest.approx(wanted_facts, rel=bound, abs=bound)
    size = max(float(g.abs().max()) for g in each.values())
    assert size > 1e-3
    for name, gradient in each.items():
        assert (gradients[name] - gradient).abs().max() <= bound * size, name


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_of_every_family(family):
    examples = with_reference(random_answers(6, prompt=70, seed=2))
    assert tokens(examples, 250, True) < 0.75 * tokens(examples, 250, False)
    assert_same(lambda: tiny_model(family, **FAMILIES[family]), examples, DPO, 250)


@pytest.mark.parametrize("family", ["gpt_neox", "opt"])
def test_pairs_in_float64(family):
    """Families whose code does not round to fp32 inside; what is left is the order of sums."""
    examples = with_reference(random_answers(6, prompt=70, seed=2))
    make = lambda: tiny_model(family, dtype=torch.float64, **({"dropout": 0.0} if family == "opt" else {}))  # noqa: E731
    assert_same(make, examples, DPO, 250, bound=1e-7)  # the step's loss is told in fp32


@pytest.mark.parametrize("section", [DPO, {"name": "plackett_luce"}, {"name": "simpo"}])
def test_lists_of_four(section):
    examples = with_reference(random_answers(5, answers=4, scores=True, prompt=70, seed=3))
    assert tokens(examples, 300, True) < 0.6 * tokens(examples, 300, False)
    assert_same(lambda: tiny_model("qwen3"), examples, section, 300)


def test_verdicts_over_the_same_prompts():
    """Rows of the same prompt, and KTO's mismatched answers to it, which run apart from the answers that are trained."""
    examples = random_verdicts(4, seed=4)
    asked = [np.arange(40) + i for i in range(4)]
    parts, scored, lengths = [], [], []
    for row in range(8):
        for _ in range(2):
            answer = np.random.default_rng(len(parts)).integers(0, 97, 5 + len(parts) % 3)
            parts += [asked[row % 2], answer]
            scored += [np.zeros(40, bool), np.ones(len(answer), bool)]
            lengths.append(40 + len(answer))
    examples = replace(
        random_verdicts(8, seed=4), ids=np.concatenate(parts).astype(np.int32), scored=np.concatenate(scored),
        offsets=np.cumsum([0, *lengths]),
    )  # fmt: skip
    examples = with_reference(examples)
    assert tokens(examples, 200, True, whole=False) < 0.5 * tokens(examples, 200, False, whole=False)
    assert_same(lambda: tiny_model("llama"), examples, {"name": "kto"}, 200)


def test_lora():
    examples = with_reference(random_answers(6, prompt=70, seed=6))
    assert_same(lambda: with_lora(tiny_model("llama")), examples, DPO, 250)


@pytest.mark.parametrize("answers", [2, 4])
def test_reward_models(answers):
    examples = random_answers(6, answers=answers, prompt=70, seed=7)
    ends = np.zeros(len(examples.ids), dtype=bool)
    ends[examples.offsets[1:] - 1] = True
    assert_same(lambda: tiny_scorer("llama"), replace(examples, scored=ends), {"name": "reward"}, 300)


def behind(system, examples):
    """The examples with `system` tokens before each."""
    starts = np.repeat(examples.offsets[:-1], 1)
    ids = np.insert(examples.ids, np.repeat(starts, len(system)), np.tile(system, len(examples)))
    scored = np.insert(examples.scored, np.repeat(starts, len(system)), False)
    offsets = examples.offsets + len(system) * np.arange(len(examples) + 1)
    return replace(examples, ids=ids.astype(np.int32), scored=scored, offsets=offsets)


@pytest.mark.parametrize("capacity", [150, 250, 4000])
def test_rows_that_share_a_system_prompt(capacity):
    """It runs once a micro-batch, where that saves more than each row's own prompt; rows stay whole, no batch is beyond the capacity."""
    examples = with_reference(behind(np.arange(60), random_answers(10, prompt=12, seed=8)))
    members = examples.members(np.arange(10))
    batches = list(microbatches(examples, members, capacity, link=True))
    assert all(len(b.ids) <= capacity for b in batches)
    assert sorted(row for b in batches for row in b.answers.rows.tolist()) == list(range(10))
    assert sum(b.parents.count(-1) for b in batches) == len(batches)
    own = sum(60 + int((examples.lengths[[2 * i, 2 * i + 1]] - 60).sum()) for i in range(10))
    assert sum(len(b.ids) for b in batches) < own
    if capacity < 4000:
        assert_same(lambda: tiny_model("llama"), examples, DPO, capacity)


def test_a_prompt_longer_than_the_system_prompt_is_shared_by_its_own_answers():
    """40 tokens that all begin with, and 60 more that only one row's answers do: these two are worth more to it."""
    examples = behind(np.arange(40), random_answers(4, prompt=1, seed=9))
    long = random_answers(1, prompt=1, seed=10)
    long = behind(np.concatenate([np.arange(40), np.arange(60)]), long)
    joined = replace(
        random_answers(5), ids=np.concatenate([examples.ids, long.ids]), scored=np.concatenate([examples.scored, long.scored]),
        offsets=np.concatenate([examples.offsets, examples.offsets[-1] + long.offsets[1:]]),
    )  # fmt: skip
    (batch,) = microbatches(joined, joined.members(np.arange(5)), 4000, link=True)
    roots = [n for n, parent in zip(batch.lengths, batch.parents, strict=True) if parent < 0]
    assert roots[0] >= 100
    assert roots[1] in (40, 41)
    assert len(roots) == 2


def test_a_row_that_is_drawn_twice_is_two():
    """Its loss counts twice, as that of another row with the same tokens would."""
    examples = with_reference(random_answers(3, prompt=60, seed=11))
    members = examples.members(np.array([1, 0, 1, 1]))
    for link in (False, True):
        (batch,) = microbatches(examples, members, 4000, link=link)
        assert sorted(batch.answers.rows.tolist()) == [0, 1, 1, 1]
        assert batch.answers.weight.tolist() == [1.0] * 4
        counts = torch.bincount(batch.answers.of_target).tolist()
        scored = np.diff(examples.scored_offsets)
        assert sorted(counts) == sorted(scored[members].tolist())


def test_a_row_beyond_the_capacity_is_a_micro_batch_of_its_own():
    examples = random_answers(4, answers=4, prompt=60, seed=12)
    for link in (False, True):
        batches = list(microbatches(examples, examples.members(np.arange(4)), 20, link=link))
        assert sorted(b.answers.rows.tolist() for b in batches) == [[0], [1], [2], [3]]


def test_where_only_links_are_not_exact_rows_run_flat_without(monkeypatch):
    """An attention that forgets the links: the probe finds it, and leaves flat batches to the policy."""

    def forgetful(*inputs, segments, **keywords):
        lengths = tuple(np.diff(segments.cu_seqlens).tolist())
        return flat_attention(*inputs, segments=attention.plan(lengths, segments.cu_seqlens), **keywords)

    flat_attention = attention.flat_attention
    monkeypatch.setattr(attention, "flat_attention", forgetful)
    policy, sentence = make_policy(tiny_model("llama").eval())
    assert policy.flat
    assert not policy.links
    assert "runs for each" in sentence
    assert "log-probs differ" in sentence
    monkeypatch.undo()
    policy, sentence = make_policy(tiny_model("llama").eval())
    assert policy.flat
    assert policy.links
    assert "runs for each" not in sentence


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capacity", [12, 30, 90])
def test_rows_that_branch_off_each_other_anywhere_are_each_whole_in_one_batch(monkeypatch, seed, capacity):
    """Random trees of beginnings, any of them shared: every answer's tokens are there, and no batch of several rows is too long."""
    monkeypatch.setattr(links, "SHARED", 1)
    rng = np.random.default_rng(seed)
    answers = [rng.integers(0, 3, rng.integers(2, 12))]
    while len(answers) < 24:
        old = answers[rng.integers(len(answers))]
        answers.append(np.concatenate([old[: rng.integers(0, len(old) + 1)], rng.integers(0, 3, rng.integers(1, 9))]))
    examples = replace(
        random_answers(8, answers=3), ids=np.concatenate(answers).astype(np.int32),
        scored=np.concatenate([np.arange(len(a)) > 0 for a in answers]), offsets=np.cumsum([0, *map(len, answers)]),
    )  # fmt: skip
    drawn = rng.permutation(8)
    found = []
    for batch in microbatches(examples, examples.members(drawn), capacity, link=True):
        found += batch.answers.rows.tolist()
        assert len(batch.ids) <= capacity or len(batch.answers.rows) == 1
        of, ids = batch.answers.of_target, batch.target_ids
        for answer in range(len(batch.answers.group)):
            row, place = divmod(answer, 3)
            wanted = answers[3 * batch.answers.rows[row] + place]
            assert ids[of == answer].tolist() == wanted[1:].tolist()
    assert sorted(found) == list(range(8))
