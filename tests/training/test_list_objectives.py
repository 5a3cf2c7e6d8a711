"""Plackett-Luce over ranked lists, derived by hand: shorter lists, ties, and two answers as DPO's pair."""

import math

import pytest
import torch

from tunesmith.training.objectives import dpo, plackett_luce
from tunesmith.training.objectives._answers import Lists, Pairs, Side

NAN = math.nan


def lists(*rewards, values=None, beta=0.5):
    """Lists whose answers have these rewards, the best first."""
    most = max(map(len, rewards))
    flat = torch.tensor([r / beta for one in rewards for r in one], dtype=torch.float64)
    logps = (flat - 3.0).requires_grad_()
    place, real = torch.zeros(len(rewards), most, dtype=torch.int64), torch.zeros(len(rewards), most, dtype=torch.bool)
    scores, begin = torch.full((len(rewards), most), NAN), 0
    for g, one in enumerate(rewards):
        place[g, : len(one)] = torch.arange(begin, begin + len(one))
        real[g, : len(one)] = True
        if values is not None:
            scores[g, : len(one)] = torch.tensor(values[g])
        begin += len(one)
    return Lists(Side(logps, torch.full_like(flat, -3.0), torch.ones(len(flat))), place, real, scores)


L4, L2, L1 = math.log(4), math.log(2), 0.0


def test_a_ranking_of_three():
    """The best is chosen with 4/7, the second of the two left with 2/3."""
    given = lists([L4, L2, L1])
    losses, rewards = plackett_luce.loss(given, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(7 / 4 * 3 / 2)])
    assert rewards[0].tolist() == pytest.approx([L4, L2, L1])
    losses.sum().backward()
    # d/dr of log sum exp - r: 4/7 - 1; 2/7 + 2/3 - 1; 1/7 + 1/3
    assert given.answers.logps.grad.tolist() == pytest.approx([0.5 * x for x in (-3 / 7, -1 / 21, 10 / 21)])


def test_shorter_lists_beside_longer_ones():
    given = lists([L4, L2, L1], [L1, L2], [L1])
    losses, rewards = plackett_luce.loss(given, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(21 / 8), math.log(3), 0.0], abs=1e-12)
    assert rewards[1:, 2].tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert given.answers.logps.grad.isfinite().all()


def test_two_answers_are_dpos_pair():
    given = lists([0.7, -0.4], [-1.0, 2.0])
    losses, _ = plackett_luce.loss(given, beta=0.5)
    part = [Side(*(x[i::2] for x in given.answers)) for i in range(2)]
    wanted, *_ = dpo.loss(Pairs(*part, torch.zeros(2)), beta=0.5)
    assert torch.allclose(losses, wanted, atol=1e-12)
    mine, theirs = (torch.autograd.grad(x.sum(), given.answers.logps)[0] for x in (losses, wanted))
    assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "odds"),
    [
        ([3.0, 2.0, 1.0], 7 / 4 * 3 / 2),
        ([3.0, 1.0, 1.0], 7 / 4),  # the second and the third say nothing of each other
        ([3.0, 3.0, 1.0], 5 / 4 * 3 / 2),  # each is better than the third alone
        ([1.0, 1.0, 1.0], 1.0),
    ],
)
def test_ties_say_nothing_of_each_other(values, odds):
    losses, _ = plackett_luce.loss(lists([L4, L2, L1], values=[values]), beta=0.5)
    assert losses.item() == pytest.approx(math.log(odds), abs=1e-12)


def test_only_differences_count_and_far_ones_stay_finite():
    near, _ = plackett_luce.loss(lists([L4, L2, L1]), beta=0.5)
    moved, _ = plackett_luce.loss(lists([L4 + 50, L2 + 50, L1 + 50]), beta=0.5)
    assert torch.allclose(near, moved, atol=1e-12)
    given = lists([-1e4, 0.0, 1e4])
    losses, _ = plackett_luce.loss(given, beta=0.5)
    losses.sum().backward()
    assert losses.item() == pytest.approx(3e4)
    assert given.answers.logps.grad.isfinite().all()
