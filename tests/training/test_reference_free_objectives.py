"""ORPO, SimPO with AlphaPO, and CPO: values and gradients derived by hand."""

import math

import pytest
import torch

from tunesmith.training.objectives import cpo, orpo, simpo
from tunesmith.training.objectives._answers import Pairs, Side


def pairs(chosen, rejected, lengths=(4, 2)):
    """One pair whose answers' tokens have these mean log-probs."""

    def side(mean, length):
        logps = torch.tensor([mean * length], dtype=torch.float64, requires_grad=True)
        return Side(logps, torch.zeros(1), torch.tensor([float(length)]))

    return Pairs(side(chosen, lengths[0]), side(rejected, lengths[1]), torch.zeros(1))


def values(found):
    return [x.item() for x in found]


HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)


def test_orpo_by_hand():
    """Odds of 1/2 are 1, of 1/4 a third: the ratio is 3, its sigmoid 3/4."""
    given = pairs(HALF, QUARTER)
    loss, *_ = found = orpo.loss(given, beta=0.2)
    assert values(found) == pytest.approx([0.2 * math.log(4 / 3), 0.2 * HALF, 0.2 * QUARTER])
    loss.sum().backward()
    # d log odds / d log p = 1 / (1 - p), over the answer's length
    assert given.chosen.logps.grad.item() == pytest.approx(-0.2 * 1 / 4 * 2 / 4)
    assert given.rejected.logps.grad.item() == pytest.approx(0.2 * 1 / 4 * 4 / 3 / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_of_answers_that_are_certain_or_hopeless(dtype):
    """p = 1 (in float32 also what is within 6e-8 of it, where 1 - exp(log p) is 0) and p = exp(-10,000)."""
    means = torch.tensor([0.0, -1e-9, -1e-3, -1e4], dtype=dtype)
    for chosen, rejected in ((means, means.flip(0)), (means, means)):
        logps = [x.clone().requires_grad_() for x in (chosen, rejected)]
        sides = [Side(x, torch.zeros(4), torch.ones(4)) for x in logps]
        loss, *_ = orpo.loss(Pairs(*sides, torch.zeros(4)))
        loss.sum().backward()
        assert loss.isfinite().all()
        assert all(x.grad.isfinite().all() for x in logps)


def test_orpo_keeps_its_precision_near_one():
    """log odds of 1 - 1e-6 are log(1e6) to float32's precision, where log(1 - p) from p alone is off by 5%."""
    means = torch.tensor([math.log1p(-1e-6)])
    assert orpo._log_odds(means).item() == pytest.approx(math.log(1e6), abs=1e-4)


def test_simpo_by_hand():
    """r = beta times the mean: -2 and -4, a margin gamma of 0.5 * 2: sigmoid(1). Sums over tokens would be -8 and -8."""
    given = pairs(-1.0, -2.0)
    loss, *rewards = simpo.loss(given, beta=2.0, gamma_beta_ratio=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert values(rewards) == pytest.approx([-2.0, -4.0])
    loss.sum().backward()
    slope = 1 / (1 + math.e)  # 1 - sigmoid(1)
    assert given.chosen.logps.grad.item() == pytest.approx(-slope * 2 / 4)
    assert given.rejected.logps.grad.item() == pytest.approx(slope * 2 / 2)


def test_simpo_with_labels_that_are_wrong_at_times():
    loss, *_ = simpo.loss(pairs(-1.0, -2.0), label_smoothing=0.25)
    assert loss.item() == pytest.approx(0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.e))


@pytest.mark.parametrize(
    ("alpha", "rewards"),
    [
        (1.0, (-1.0, -3.0)),  # 1 - 1/p
        (-1.0, (-1 / 2, -3 / 4)),  # p - 1
        (0.5, (2 - 2 * math.sqrt(2), -2.0)),  # 2 (1 - p^(-1/2))
    ],
)
def test_alphapo_by_hand(alpha, rewards):
    loss, *found = simpo.loss(pairs(HALF, QUARTER), beta=2.0, gamma_beta_ratio=0.5, alpha=alpha)
    assert values(found) == pytest.approx([2 * r for r in rewards])
    assert loss.item() == pytest.approx(math.log1p(math.exp(-(2 * (rewards[0] - rewards[1]) - 1))))


def test_alphapo_ends_in_simpo_as_alpha_goes_to_zero():
    wanted = values(simpo.loss(pairs(HALF, QUARTER)))
    assert values(simpo.loss(pairs(HALF, QUARTER), alpha=1e-7)) == pytest.approx(wanted, abs=1e-6)


def test_cpo_by_hand():
    given = pairs(-2.5, -10.0)  # -10 and -20 in sum
    loss, *rewards = cpo.loss(given, beta=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert values(rewards) == pytest.approx([-1.0, -2.0])
    loss.sum().backward()
    assert given.chosen.logps.grad.item() == pytest.approx(-0.1 / (1 + math.e))
    smoothed, *_ = cpo.loss(pairs(-2.5, -10.0), beta=0.1, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e))
