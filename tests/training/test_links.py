"""Rows of a step with a common beginning: found as by brute force, collated once, the same losses and gradients."""

from itertools import combinations

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model
from tunesmith.data.records import Examples, Origin
from tunesmith.model.policy import make_policy
from tunesmith.training import links
from tunesmith.training.batch import collate, microbatches
from tunesmith.training.links import Cluster, label
from tunesmith.training.scoring import example_nll


def find_clusters(examples, rows):
    """(The rows that share nothing, in order; the clusters): every row once."""
    cluster, shared = label(examples, rows)
    return rows[cluster < 0], [Cluster(rows[cluster == c], int(n)) for c, n in enumerate(shared)]


def examples_of(rows, scored=None):
    """Examples of the given lists of ids; by default the last token of each is scored."""
    lengths = np.array([len(r) for r in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    mask = np.zeros(offsets[-1], bool)
    if scored is None:
        mask[offsets[1:] - 1] = True
    else:
        mask[:] = np.concatenate(scored).astype(bool)
    ids = np.concatenate(rows).astype(np.int32)
    return Examples(ids, mask, offsets, np.arange(len(rows)), [Origin("f", i + 1) for i in range(len(rows))])


def grown(seed, n=9):
    """Random rows that branch off each other at random places."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 3, rng.integers(1, 12)).tolist()]
    while len(rows) < n:
        old = rows[rng.integers(len(rows))]
        rows.append(old[: rng.integers(0, len(old) + 1)] + rng.integers(0, 3, rng.integers(1, 9)).tolist())
    return rows


def most(rows, least):
    """The most tokens that disjoint groups of rows can save, by trying every group that could hold the first row."""
    if len(rows) < 2:
        return 0
    best = most(rows[1:], least)
    for size in range(1, len(rows)):
        for others in combinations(range(1, len(rows)), size):
            group = [rows[0], *(rows[i] for i in others)]
            shared = 0
            while shared < min(map(len, group)) - 1 and len({r[shared] for r in group}) == 1:
                shared += 1
            if shared >= least:
                rest = [r for i, r in enumerate(rows) if i and i not in others]
                best = max(best, shared * size + most(rest, least))
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least", [1, 3])
def test_few_other_clusters_save_more(monkeypatch, seed, least):
    """What is found is whole and disjoint, and saves at least 85% (99% on average) of the most that any groups could."""
    monkeypatch.setattr(links, "SHARED", least)
    rows = grown(seed, n=7)
    alone, clusters = find_clusters(examples_of(rows), np.arange(len(rows)))
    assert sorted([*alone.tolist(), *(i for c in clusters for i in c.rows.tolist())]) == list(range(len(rows)))
    for c in clusters:
        assert len(c.rows) > 1
        assert c.shared >= least
        assert len({tuple(rows[i][: c.shared]) for i in c.rows}) == 1
        assert all(len(rows[i]) > c.shared for i in c.rows)
    saved = sum(c.shared * (len(c.rows) - 1) for c in clusters)
    assert 0.85 * most(rows, least) <= saved <= most(rows, least)


def test_a_row_that_comes_three_times_runs_nearly_once():
    rows = [list(range(40)), list(range(50, 90))]
    alone, clusters = find_clusters(examples_of(rows), np.array([0, 1, 0, 0]))
    assert alone.tolist() == [1]
    assert [(c.rows.tolist(), c.shared) for c in clusters] == [([0, 0, 0], 39)]


def test_collate_by_hand():
    """Rows 1 2 3* 4*, 1 2 3 5* 6*, 1 2 3* 7 and 8 9* (* scored) with 1 2 3 shared: each row's own 3 is a target or is not."""
    rows = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 7], [8, 9]]
    examples = examples_of(rows, [[0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0], [0, 1]])
    batch = collate(examples, np.array([3]), [Cluster(np.array([0, 1, 2]), 3)])
    assert batch.ids.tolist() == [1, 2, 3, 8, 9, 5, 6, 4, 7]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 3, 4, 3, 3]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7, 8, 9]
    assert batch.lengths == (3, 2, 2, 1, 1)
    assert batch.parents == (-1, -1, 0, 0, 0)
    found = list(zip(*(x.tolist() for x in (batch.target_example, batch.target_index, batch.target_ids)), strict=True))
    assert found == [(1, 2, 5), (1, 5, 6), (0, 1, 3), (0, 2, 4), (2, 1, 3), (3, 3, 9)]
    assert batch.weights.tolist() == [1] * 6


def sharing_examples(n=24, seed=0):
    """Random rows of which two thirds begin with one of two system prompts (40 and 50 tokens), some of them twice the same."""
    rng = np.random.default_rng(seed)
    prompts = [[], rng.integers(0, 97, 40).tolist(), rng.integers(0, 97, 50).tolist()]
    rows = [prompts[i % 3] + rng.integers(0, 97, rng.integers(2, 30)).tolist() for i in range(n - 1)]
    rows.append(rows[1])
    return examples_of(rows, [[False, *(rng.random(len(r) - 1) < 0.5)] for r in rows])


@pytest.mark.parametrize("capacity", [90, 150, 400, 4000])
def test_microbatches_hold_every_target_once_and_fewer_tokens(capacity):
    examples, rows = sharing_examples(), np.array([*range(24), 5, 5, 16])
    wanted = sorted(
        (int(r), int(examples.ids[t]))
        for r in rows
        for t in range(examples.offsets[r], examples.offsets[r + 1])
        if examples.scored[t]
    )
    batches = list(microbatches(examples, rows, capacity, link=True))
    found = [pair for b in batches for pair in zip(b.target_example.tolist(), b.target_ids.tolist(), strict=True)]
    assert sorted(found) == wanted
    assert all(len(b.ids) <= capacity for b in batches)
    assert sum(len(b.ids) for b in batches) < 0.8 * examples.lengths[rows].sum()
    assert any(max(b.parents) >= 0 for b in batches)
    assert all(max(b.parents) < 0 for b in microbatches(examples, rows, capacity))


def losses(policy, batches):
    policy.zero_grad()
    total = 0.0
    for b in batches:
        part = -(policy(b) * b.weights).sum()
        part.backward()
        total += float(part.detach())
    return total, {n: p.grad.double().clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "dtype", "bound"),
    [
        ("gpt_neox", torch.float64, 1e-10),
        ("opt", torch.float64, 1e-10),
        ("llama", torch.float32, 1e-5),
        ("qwen3", torch.float32, 1e-5),
    ],
)
@pytest.mark.parametrize("capacity", [150, 4000])
def test_links_change_no_loss_and_no_gradient(family, dtype, bound, capacity):
    """In float64 for families whose code does not round to fp32 inside."""
    policy, _ = make_policy(tiny_model(family, dtype=dtype))
    policy.eval()  # no dropout, which would not be the same one
    assert policy.flat
    examples, rows = sharing_examples(), np.array([*range(24), 5, 5])
    plain, plain_gradients = losses(policy, microbatches(examples, rows, capacity))
    linked, linked_gradients = losses(policy, microbatches(examples, rows, capacity, link=True))
    assert abs(linked - plain) <= bound * abs(plain)
    assert linked_gradients.keys() == plain_gradients.keys()
    size = max(float(g.abs().max()) for g in plain_gradients.values())
    for name, wanted in plain_gradients.items():
        assert (linked_gradients[name] - wanted).abs().max() <= bound * size, name


def test_filled_up_batches_are_the_same_training():
    """Up to a multiple of 64 tokens by a segment that nothing attends to and nothing is predicted from."""
    policy, _ = make_policy(tiny_model("gpt_neox", dtype=torch.float64))
    policy.eval()
    examples, rows = sharing_examples(), np.arange(24)
    plain, plain_gradients = losses(policy, microbatches(examples, rows, 150, link=True))
    batches = list(microbatches(examples, rows, 150, link=True, multiple=64))
    assert all(len(b.ids) % 64 == 0 and b.lengths[-1] >= b.padding for b in batches)
    assert any(b.padding for b in batches)
    assert all(int(b.target_index.max()) < len(b.ids) - b.padding for b in batches)
    filled, filled_gradients = losses(policy, batches)
    assert abs(filled - plain) <= 1e-10 * abs(plain)
    for name, wanted in plain_gradients.items():
        assert (filled_gradients[name] - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max())), name


def test_scores_of_examples_are_each_its_own():
    policy, _ = make_policy(tiny_model("llama", dtype=torch.float64))
    examples = sharing_examples()
    nll, count = example_nll(policy, examples, tokens=300)
    for i in range(len(examples)):
        batch = collate(examples, np.array([i]))
        with torch.no_grad():
            assert abs(nll[i] + float(policy(batch).sum())) <= 1e-8
        assert count[i] == len(batch.target_ids)


def test_random_rows_share_nothing():
    examples = random_examples(n=30, low=40, high=60)
    alone, clusters = find_clusters(examples, np.arange(30))
    assert alone.tolist() == list(range(30))
    assert clusters == []
