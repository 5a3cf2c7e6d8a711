"""The same pairs through TRL's DPOTrainer give the same loss, gradients, logged rewards and 20 steps (fp32, 1e-5), loss by loss."""

import numpy as np
import pytest
import torch
from trl_pairs import (
    disturbed,
    one_step_of_trl,
    steps_of_ours,
    steps_of_trl,
    with_reference,
)

from builders import random_answers, tiny_model, with_lora
from steppers import one_step

LOGGED = {
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "rewards/margins": "rewards_margins",
    "rewards/accuracies": "rewards_accuracies",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}

LOSSES = {  # TRL's loss_type and options -> ours
    "sigmoid": ({}, {"name": "dpo"}),
    "sigmoid_norm": ({"beta": 2.0}, {"name": "dpo", "length_normalised": True, "beta": 2.0}),
    "ipo": ({}, {"name": "ipo"}),
    "hinge": ({"beta": 0.3}, {"name": "hinge", "beta": 0.3}),
    "robust": ({"label_smoothing": 0.2}, {"name": "robust", "label_smoothing": 0.2}),
    "exo_pair": ({"label_smoothing": 1e-3}, {"name": "exo"}),
    "nca_pair": ({}, {"name": "nca"}),
    "bco_pair": ({}, {"name": "bco_pair"}),
    "sppo_hard": ({"beta": 0.5}, {"name": "sppo", "beta": 0.5}),
    "aot": ({"label_smoothing": 0.1}, {"name": "aot", "label_smoothing": 0.1}),
    "aot_unpaired": ({}, {"name": "aot", "paired": False}),
    "apo_zero": ({}, {"name": "apo"}),
    "apo_down": ({}, {"name": "apo", "variant": "down"}),
    "discopop": ({"discopop_tau": 0.1}, {"name": "discopop", "tau": 0.1}),
}
DIVERGENCES = {
    "forward_kl": ({"f_divergence_type": "forward_kl"}, {"divergence": "forward_kl"}),
    "js": ({"f_divergence_type": "js_divergence"}, {"divergence": "js"}),
    "alpha": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        {"divergence": "alpha", "alpha": 0.7},
    ),
}
DIVERGING = ("sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "exo_pair", "discopop")


def cases():
    """Return every loss alone, every one that f-divergences are for with each, and what goes with any loss with some."""
    found = {name: ({"loss_type": name, **theirs}, ours) for name, (theirs, ours) in LOSSES.items()}
    for name in DIVERGING:
        for kind, (theirs, ours) in DIVERGENCES.items():
            own, mine = found[name]
            found[f"{name}-{kind}"] = ({**own, **theirs}, {**mine, **ours})
    for name in ("sigmoid", "ipo", "aot"):
        own, mine = found[name]
        found[f"{name}-desensitised"] = ({**own, "ld_alpha": 0.3}, {**mine, "desensitise": 0.3})
        both = {**own, "loss_type": [name, "sft"], "loss_weights": [1.0, 0.5]}
        found[f"{name}-sft"] = (both, {**mine, "sft": 0.5})
    # not hinge, through which TRL 1.16 cannot go back: it multiplies relu's output in place
    for name in ("sigmoid", "ipo", "nca_pair"):
        own, mine = found[name]
        found[f"{name}-weighted"] = ({**own, "use_weighting": True}, {**mine, "weighted": True})
    return found


CASES = cases()


@pytest.fixture(scope="module")
def reference():
    return disturbed(tiny_model())


@pytest.fixture(scope="module")
def pairs(reference):
    return with_reference(random_answers(8, seed=4), reference)


QUICK = [name for name in CASES if "-" not in name or name.startswith(("sigmoid-", "ipo-"))]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_loss_gradients_and_rewards(case, pairs, reference, tmp_path):
    """Ours run with prompts shared and in several micro-batches; theirs in one batch."""
    theirs, section = CASES[case]
    wanted, wanted_gradients, logged = one_step_of_trl(pairs, reference, tmp_path, **theirs)
    found, gradients, facts, batches = one_step(tiny_model(), pairs, section)
    assert batches > 1
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name
    assert max(g.abs().max().item() for g in wanted_gradients.values()) > 1e-3  # they are of something
    for name, ours in LOGGED.items():
        assert facts[ours] == pytest.approx(logged[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(("loss", "adapter"), [("sigmoid", "full"), ("sigmoid", "lora"), ("aot", "full")])
def test_twenty_steps(loss, adapter, tmp_path):
    """The same pairs in the same order, eight a step, the start as reference: every step's loss, rewards, and the weights at the end."""
    oracle, ours, start = ((tiny_model() if adapter == "full" else with_lora(tiny_model())) for _ in range(3))
    examples = with_reference(random_answers(160, seed=5), start)
    reference = start if adapter == "full" else None  # of an adapter TRL makes its own copy
    wanted = steps_of_trl(oracle, reference, examples, 20, tmp_path / "trl", loss_type=loss)
    found = steps_of_ours(ours, examples, 20, tmp_path / "ours", CASES[loss][1] | {"label_smoothing": 0.0})
    assert len(found) == len(wanted) == 20
    for theirs, name in {"loss": "loss", **LOGGED}.items():
        # at the first step all rewards are 0, and rounding alone says which is above
        begin = int(name == "rewards_accuracies")
        mine, logged = [e[name] for e in found], [e[theirs] for e in wanted]
        np.testing.assert_allclose(mine[begin:], logged[begin:], atol=1e-5, rtol=1e-5)
    trained = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    mine = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() == mine.keys()
    for name, p in trained.items():
        assert (mine[name] - p).abs().max() <= 1e-5 * max(1.0, p.abs().max().item()), name
    assert torch.tensor([e["loss"] for e in found]).diff().abs().max() > 1e-3  # something was learned
