"""The losses over pairs of answers: each by values derived by hand, what they have in common, and options that cannot be."""

import math

import pytest
import torch
import yaml

from tunesmith import registry
from tunesmith.errors import InputError
from tunesmith.training import make_objective
from tunesmith.training.objectives import (
    ELSEWHERE,
    aot,
    apo,
    bco_pair,
    discopop,
    dpo,
    exo,
    hinge,
    ipo,
    nca,
    robust,
    sppo,
)
from tunesmith.training.objectives._answers import Pairs, Side
from tunesmith.training.objectives._divergence import derivative

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)
EVERY = [aot, apo, bco_pair, discopop, dpo, exo, hinge, ipo, nca, robust, sppo]
WITH_DIVERGENCE = [dpo, hinge, ipo, robust, exo, discopop]


def side(ratios, lengths=None, reference=-7.0):
    """Answers whose log (p / p_reference) are `ratios`."""
    ratios = torch.tensor(ratios, dtype=torch.float64)
    reference = torch.full_like(ratios, reference)
    lengths = torch.ones_like(ratios) if lengths is None else torch.tensor(lengths, dtype=torch.float64)
    return Side(ratios + reference, reference, lengths)


def pair(chosen, rejected, margin=0.0, lengths=(1.0, 1.0)):
    """One pair of answers with those log-ratios."""
    return Pairs(
        side([chosen], [lengths[0]]), side([rejected], [lengths[1]]), torch.tensor([margin], dtype=torch.float64)
    )


def near(wanted):
    return pytest.approx(wanted, abs=1e-9)


def of(module, pairs, **options):
    losses, chosen, rejected = module.loss(pairs, **options)
    assert losses.shape == chosen.shape == rejected.shape == pairs.margins.shape
    return losses.item()


def test_dpo():
    """sigmoid(log 3) = 3/4: with h = 1/2 (log 9 + log 1) = log 3 the loss is log 4/3, and with flipped labels' log 4 a tenth of it."""
    pairs = pair(math.log(9), 0.0)
    assert of(dpo, pairs, beta=0.5) == near(LOG4 - LOG3)
    assert of(dpo, pairs, beta=0.5, label_smoothing=0.1) == near(0.9 * (LOG4 - LOG3) + 0.1 * LOG4)


def test_dpo_per_token():
    """log 9 over two tokens is log 3, minus 3 log 3 over three: h = 0."""
    pairs = pair(math.log(9), 3 * LOG3, lengths=(2.0, 3.0))
    assert of(dpo, pairs, beta=0.5, length_normalised=True) == near(LOG2)


def test_dpo_with_an_offset():
    """h = log 3 less margin log s: s = 3/2 leaves log 2, s = 9 at margin 1/2 leaves 0, and a pair without scores has none."""
    assert of(dpo, pair(LOG3, 0.0, 1.5), beta=1.0, margin=1.0) == near(LOG3 - LOG2)
    assert of(dpo, pair(LOG3, 0.0, 9.0), beta=1.0, margin=0.5) == near(LOG2)
    assert of(dpo, pair(LOG3, 0.0), beta=1.0, margin=1.0) == near(LOG4 - LOG3)
    assert of(dpo, pair(LOG3, 0.0, 1.5), beta=1.0) == near(LOG4 - LOG3)


def test_an_offset_of_a_pair_without_scores_has_a_gradient():
    """log 0 would make NaN of it."""
    logps = torch.tensor([1.0, 2.0], requires_grad=True)
    zeros = torch.zeros(2)
    chosen, rejected = Side(logps, zeros, zeros + 1), Side(zeros, zeros, zeros + 1)
    dpo.loss(Pairs(chosen, rejected, torch.tensor([0.0, 2.0])), margin=1.0)[0].sum().backward()
    assert torch.isfinite(logps.grad).all()


def test_ipo():
    """Means 3 and 1 are 2 apart, and 1 / (2 * 1/4) = 2 is what is wanted; sums of answers count by token."""
    assert of(ipo, pair(6.0, 4.0, lengths=(2.0, 4.0)), beta=0.25) == near(0.0)
    assert of(ipo, pair(6.0, 4.0, lengths=(2.0, 4.0)), beta=0.5) == near(1.0)


def test_hinge():
    assert of(hinge, pair(3.0, -1.0), beta=0.125) == near(0.5)
    assert of(hinge, pair(30.0, -1.0), beta=0.125) == near(0.0)
    assert of(hinge, pair(-1.0, 3.0), beta=0.125) == near(1.5)


def test_robust():
    """(0.9 log 4/3 - 0.1 log 4) / 0.8."""
    assert of(robust, pair(LOG3, 0.0), beta=1.0, label_smoothing=0.1) == near((0.9 * (LOG4 - LOG3) - 0.1 * LOG4) / 0.8)
    assert of(robust, pair(LOG3, 0.0), beta=1.0, label_smoothing=0.0) == near(LOG4 - LOG3)


def test_robust_is_unbiased():
    """A label that is flipped three times in ten: the expected loss is that of DPO on the true one."""
    true, flipped = pair(1.3, -0.4), pair(-0.4, 1.3)
    found = 0.7 * of(robust, true, label_smoothing=0.3) + 0.3 * of(robust, flipped, label_smoothing=0.3)
    assert found == near(of(dpo, true))


def test_exo():
    """q = 3/4 against 1 - e = 3/4 is no divergence; against 1/2 nearly, 3/4 log 3/2 + 1/4 log 1/2."""
    assert of(exo, pair(LOG3, 0.0), beta=1.0, label_smoothing=0.25) == near(0.0)
    wanted = 0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.4)
    assert of(exo, pair(LOG3, 0.0), beta=1.0, label_smoothing=0.4) == near(wanted)


def test_nca():
    """Rewards log 3 and -log 3: -log 3/4 - 1/2 log 1/4 - 1/2 log 3/4."""
    assert of(nca, pair(2 * LOG3, -2 * LOG3), beta=0.5) == near(1.5 * (LOG4 - LOG3) + 0.5 * LOG4)


def test_bco_pair():
    """Rewards log 3 and log 3: log 4/3 + log 4."""
    assert of(bco_pair, pair(LOG3, LOG3), beta=1.0) == near(2 * LOG4 - LOG3)


def test_bco_pair_is_a_bound_of_dpo():
    for chosen in (-3.0, 0.0, 2.0):
        for rejected in (-2.0, 0.5, 4.0):
            assert of(bco_pair, pair(chosen, rejected)) > of(dpo, pair(chosen, rejected))


def test_sppo():
    """beta 1/4 wants 2 and -2: (3 - 2)^2 + (-1 + 2)^2."""
    assert of(sppo, pair(3.0, -1.0), beta=0.25) == near(2.0)


def test_sppo_soft():
    """Scores log 3 apart win three times in four, which wants 1 and -1; a pair without scores is a hard one."""
    assert of(sppo, pair(3.0, -1.0, LOG3), beta=0.25, soft=True) == near(4.0)
    assert of(sppo, pair(3.0, -1.0), beta=0.25, soft=True) == near(2.0)
    assert of(sppo, pair(3.0, -1.0, LOG3), beta=0.25) == near(2.0)


def test_apo():
    """Rewards log 3 and 0 have sigmoids 3/4 and 1/2; zero 1/4 + 1/2, down 3/4 + 1 - sigmoid(log 3)."""
    assert of(apo, pair(LOG3, 0.0), beta=1.0) == near(0.75)
    assert of(apo, pair(LOG3, 0.0), beta=1.0, variant="down") == near(1.0)
    assert of(apo, pair(0.0, LOG3), beta=1.0, variant="down") == near(1.25)


def test_discopop():
    """h = log 3 and tau = 1/2: s = sigmoid(log 9) = 9/10 of exp(-h) = 1/3, a tenth of log 4/3."""
    assert of(discopop, pair(LOG3, 0.0), beta=1.0, tau=0.5) == near(0.3 + 0.1 * (LOG4 - LOG3))
    assert of(discopop, pair(0.0, LOG3), beta=1.0, tau=0.5) == near(0.1 * 3 + 0.9 * LOG4)


def test_discopop_far_off_is_a_number():
    """exp(-h) alone is infinite in fp32 beyond h = -88, and infinity times s = 0 is none."""
    logps = torch.tensor([-3000.0], requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1)
    (losses, *_) = discopop.loss(Pairs(Side(logps, zero, one), Side(zero, zero, one), zero))
    losses.sum().backward()
    assert losses.item() == pytest.approx(300.0)
    assert logps.grad.item() == pytest.approx(-0.1)


def two_pairs():
    """Policy differences -1 and 2, the reference's 0 and -3: by themselves -1 and 5 apart, sorted 2 and 2."""
    chosen = Side(torch.tensor([-4.0, -1.0]), torch.tensor([-5.0, -6.0]), torch.ones(2))
    rejected = Side(torch.tensor([-3.0, -3.0]), torch.tensor([-5.0, -3.0]), torch.ones(2))
    return Pairs(chosen, rejected, torch.zeros(2))


def test_aot_paired():
    losses, chosen, rejected = aot.loss(two_pairs(), beta=LOG3 / 2)
    assert losses.tolist() == pytest.approx([LOG4 - LOG3] * 2, abs=1e-6)
    assert chosen.tolist() == pytest.approx([LOG3 / 2, 2.5 * LOG3])
    assert rejected.tolist() == pytest.approx([LOG3, 0.0])


def test_aot_unpaired():
    """Ratios 1 and 5 over 0 and 2: 1 and 3 apart."""
    losses, *_ = aot.loss(two_pairs(), beta=LOG3, paired=False, label_smoothing=0.25)
    first = 0.75 * (LOG4 - LOG3) + 0.25 * LOG4
    second = 0.75 * math.log(28 / 27) + 0.25 * math.log(28)
    assert losses.tolist() == pytest.approx([first, second], abs=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_aot_does_not_depend_on_the_order(paired):
    """Each pair has its own loss wherever it stands, and its chosen answer the same gradient."""
    g = torch.Generator().manual_seed(0)
    numbers = torch.randn(4, 9, generator=g, dtype=torch.float64)
    order = torch.randperm(9, generator=g)

    def run(rows):
        logps = numbers[:2, rows].clone().requires_grad_()
        one = torch.ones(9)
        pairs = Pairs(Side(logps[0], numbers[2, rows], one), Side(logps[1], numbers[3, rows], one), torch.zeros(9))
        losses, *_ = aot.loss(pairs, beta=0.5, paired=paired)
        losses.sum().backward()
        return losses.detach(), logps.grad

    straight, mixed = run(torch.arange(9)), run(order)
    assert torch.allclose(straight[0][order], mixed[0], atol=1e-12)
    assert torch.allclose(straight[1][:, order], mixed[1], atol=1e-12)


@pytest.mark.parametrize("paired", [True, False])
def test_aot_of_one_pair_is_dpo(paired):
    assert of(aot, pair(1.3, 0.2), paired=paired) == near(of(dpo, pair(1.3, 0.2)))


def test_the_derivatives_of_the_divergences():
    """At u = 4: log 4; 1 - 1/4; log 8/5; with alpha 1/2, (1 - 1/2) / (1/2). At u = 1 all are 0."""
    ratios = torch.tensor([LOG4, 0.0], dtype=torch.float64)
    for name, wanted in {"reverse_kl": LOG4, "forward_kl": 0.75, "js": math.log(1.6), "alpha": 1.0}.items():
        assert derivative(ratios, name, 0.5).tolist() == pytest.approx([wanted, 0.0], abs=1e-12)
    assert derivative(ratios, "alpha", 1e-7).tolist() == pytest.approx([LOG4, 0.0], abs=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "alpha"])
def test_a_derivative_far_off_is_a_number(name):
    ratios = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    found = derivative(ratios, name, 0.5)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(ratios.grad).all()


@pytest.mark.parametrize("module", WITH_DIVERGENCE)
def test_a_divergence_stands_for_the_log_ratio(module):
    """forward_kl at u = 4 and 2 is the loss of log-ratios 3/4 and 1/2, while the rewards stay beta log u."""
    found, chosen, rejected = module.loss(pair(LOG4, LOG2), divergence="forward_kl")
    wanted, *_ = module.loss(pair(0.75, 0.5))
    assert found.item() == near(wanted.item())
    assert (chosen.item(), rejected.item()) == (near(0.1 * LOG4), near(0.1 * LOG2))


@pytest.mark.parametrize("module", EVERY)
def test_rewards_are_beta_log_ratios(module):
    _, chosen, rejected = module.loss(pair(2.0, -3.0, lengths=(2.0, 5.0)), beta=0.3)
    assert (chosen.item(), rejected.item()) == (near(0.6), near(-0.9))


@pytest.mark.parametrize("module", [m for m in EVERY if m is not aot])
def test_a_pair_s_loss_is_its_own(module):
    """Three pairs at once have the losses they have alone."""
    chosen, rejected = [0.5, -1.0, 2.0], [0.1, 1.0, -2.0]
    pairs = Pairs(side(chosen), side(rejected), torch.zeros(3, dtype=torch.float64))
    together = module.loss(pairs)[0].tolist()
    assert together == pytest.approx([of(module, pair(c, r)) for c, r in zip(chosen, rejected, strict=True)], abs=1e-9)


@pytest.mark.parametrize("module", [m for m in EVERY if m is not aot])
def test_a_loss_prefers_the_chosen_answer(module):
    """At the start, where the policy is its reference, a step down raises chosen over rejected."""
    logps = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    options = {"tau": 5.0} if module is discopop else {}  # at its own, it leaves what is undecided
    pairs = Pairs(Side(logps[:1], zero, one), Side(logps[1:], zero, one), zero)
    module.loss(pairs, **options)[0].sum().backward()
    assert logps.grad[0] < logps.grad[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "robust", "label_smoothing": 0.5}, "label_smoothing should be less than 0.5, found 0.5"),
        ({"name": "exo", "label_smoothing": 0}, "label_smoothing should be greater than 0, found 0"),
        ({"name": "dpo", "beta": 0}, "beta should be greater than 0, found 0"),
        ({"name": "dpo", "label_smoothing": 0.6}, "label_smoothing should be less than 0.5, found 0.6"),
        ({"name": "dpo", "divergence": "forward"}, "found 'forward'. Did you mean \"forward_kl\"?"),
        ({"name": "dpo", "divergence": "alpha", "alpha": 1}, "alpha should be less than 1, found 1"),
        ({"name": "apo", "variant": "up"}, "variant should be one of zero, down, found 'up'"),
        ({"name": "discopop", "tau": 0}, "tau should be greater than 0, found 0"),
        ({"name": "sppo", "divergence": "js"}, 'unknown key "divergence"'),
        ({"name": "aot", "lable_smoothing": 0.1}, 'Did you mean "label_smoothing"?'),
        ({"name": "aot", "weighted": True}, 'unknown key "weighted"'),
        (
            {"name": "ipo", "alpha": 0.3},
            "alpha is that of an alpha-divergence, and there is no divergence; set divergence",
        ),
        (
            {"name": "exo", "divergence": "js", "alpha": 0.3},
            "and divergence is js; set divergence: alpha, or take alpha",
        ),
        ({"name": "dpo", "desensitise": 1.5}, "desensitise should be less than or equal to 1, found 1.5"),
    ],
)
def test_options_that_cannot_be_are_refused(given, said):
    with pytest.raises(InputError) as refusal:
        make_objective.check(given, "run.yaml")
    assert str(refusal.value).startswith("run.yaml: objective: ")
    assert said in str(refusal.value)


def test_what_others_call_an_objective_is_told_as_it_is_written_here():
    with pytest.raises(InputError, match=r'no objective "wpo"\. Did you mean "dpo, weighted: true"\?'):
        make_objective.check({"name": "wpo"}, "run.yaml")
    for name, meant in ELSEWHERE.items():
        assert name not in registry.names("training.objectives")
        make_objective.check(yaml.safe_load(f"{{name: {meant}}}"), "run.yaml")


@pytest.mark.parametrize("module", EVERY)
def test_each_says_what_it_reads(module):
    name = module.__name__.rsplit(".", 1)[1]
    assert registry.load("training.objectives", name) is module
    assert (module.compares, module.scores, module.reference) == ("pairs", "answers", True)
    assert getattr(module, "whole_step", False) == (module is aot)
