"""KTO, BCO and unpaired APO: values and gradients derived by hand, and what their rewards are measured from."""

import math

import pytest
import torch

from tunesmith.training.objectives import apo, apo_zero_unpaired, bco, bco_pair, kto
from tunesmith.training.objectives._answers import Pairs, Side, Verdicts

LN3 = math.log(3)


def side(ratios, reference=-7.0, lengths=None):
    """Answers whose log u are `ratios`."""
    logps = torch.tensor(ratios, dtype=torch.float64) + reference
    logps.requires_grad_()
    return Side(logps, torch.full_like(logps, reference).detach(), torch.ones(len(ratios)))


def verdicts(ratios, good, baseline=0.0):
    return Verdicts(side(ratios), torch.tensor(good), torch.tensor(baseline, dtype=torch.float64))


def test_kto_by_hand():
    """beta (log u - z) = log 3, whose sigmoid is 3/4: a good answer loses 1/4, a bad one 3/4, times their weights."""
    given = verdicts([1 + 2 * LN3] * 2, [True, False], baseline=1.0)
    losses, rewards = kto.loss(given, beta=0.5, desirable_weight=2.0, undesirable_weight=0.5)
    assert losses.tolist() == pytest.approx([2 / 4, 0.5 * 3 / 4])
    assert rewards.tolist() == pytest.approx([0.5 + LN3] * 2)
    losses.sum().backward()  # d sigmoid = sigmoid (1 - sigmoid) = 3/16
    assert given.answers.logps.grad.tolist() == pytest.approx([-2 * 0.5 * 3 / 16, 0.5 * 0.5 * 3 / 16])


def test_kto_measures_from_the_mismatched_answers_but_not_below_zero():
    given = verdicts([5.0, -5.0], [True, False])
    assert kto.baseline(given, side([1.0, 2.0, 6.0])).item() == pytest.approx(3.0)
    assert kto.baseline(given, side([1.0, -2.0])).item() == 0.0
    assert kto.baseline(given, side([])).item() == 0.0
    assert not kto.baseline(given, side([1.0])).requires_grad


def test_bco_by_hand():
    """r - delta = log 3 above and below: -log(3/4) for either; from 0 instead it would not be."""
    beta = LN3 / 2
    given = verdicts([4.0, 0.0], [True, False])
    given = given._replace(baseline=bco.baseline(given, side([])))
    assert given.baseline.item() == pytest.approx(2.0)
    losses, rewards = bco.loss(given, beta=beta, desirable_weight=3.0)
    assert losses.tolist() == pytest.approx([3 * math.log(4 / 3), math.log(4 / 3)])
    assert rewards.tolist() == pytest.approx([2 * LN3, 0.0])
    losses.sum().backward()
    assert given.answers.logps.grad.tolist() == pytest.approx([-3 * beta / 4, beta / 4])


def test_bco_shifts_by_the_mean_of_the_two_labels_means():
    """The mean of good is 3, that of bad 1: 2, where the mean of all answers would be 7/3. Of one label it is that label's."""
    assert bco.baseline(verdicts([4.0, 2.0, 1.0], [True, True, False]), side([])).item() == pytest.approx(2.0)
    assert bco.baseline(verdicts([1.0, 3.0], [True, True]), side([])).item() == pytest.approx(2.0)
    assert bco.baseline(verdicts([1.0, 4.0], [False, False]), side([])).item() == pytest.approx(2.5)
    assert not bco.baseline(verdicts([1.0], [True]), side([])).requires_grad


def test_unpaired_apo_by_hand():
    losses, rewards = apo_zero_unpaired.loss(
        verdicts([2 * LN3, 2 * LN3], [True, False]), beta=0.5, undesirable_weight=2.0
    )
    assert losses.tolist() == pytest.approx([1 / 4, 2 * 3 / 4])
    assert rewards.tolist() == pytest.approx([LN3, LN3])


def test_unpaired_apo_is_kto_from_zero_and_the_paired_one_taken_apart():
    ratios = [0.3, -1.2, 2.0, 0.1]
    found, _ = apo_zero_unpaired.loss(verdicts(ratios, [True, False, True, False]))
    assert torch.equal(found, kto.loss(verdicts(ratios, [True, False, True, False]))[0])
    pairs = Pairs(side(ratios[::2]), side(ratios[1::2]), torch.zeros(2))
    assert torch.allclose(found.view(2, 2).sum(1), apo.loss(pairs, variant="zero")[0])


def test_bco_without_its_shift_is_the_paired_loss_taken_apart():
    ratios = [0.3, -1.2, 2.0, 0.1]
    found, _ = bco.loss(verdicts(ratios, [True, False, True, False]))
    pairs = Pairs(side(ratios[::2]), side(ratios[1::2]), torch.zeros(2))
    assert torch.allclose(found.view(2, 2).sum(1), bco_pair.loss(pairs)[0])


@pytest.mark.parametrize("module", [kto, bco, apo_zero_unpaired])
def test_far_rewards_stay_finite(module):
    """An answer ten thousand nats from the reference: finite losses, and no gradient that is none."""
    given = verdicts([1e4, -1e4, 1e4, -1e4], [True, True, False, False])
    losses, _ = module.loss(given)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert given.answers.logps.grad.isfinite().all()
