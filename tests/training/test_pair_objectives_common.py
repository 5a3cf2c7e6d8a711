"""What any objective over pairs can have: WPO's weights and LD-DPO's shares by hand, and sums of squared probabilities by softmax."""

import math

import pytest
import torch

from tunesmith.model import head as heads
from tunesmith.model.policy import Head
from tunesmith.model.squares import log_squares
from tunesmith.training.objectives._common import confidence, desensitised


def test_squares_by_hand():
    """p = (1/2, 1/4, 1/4): 1/4 + 1/16 + 1/16 = 3/8; all alike: 1/3; one certain: 1."""
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    found = log_squares(logits, Head(torch.eye(3), None, 1.0, None))
    assert found.tolist() == pytest.approx([math.log(3 / 8), -math.log(3), 0.0], abs=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_squares_are_those_of_the_softmax(bias, softcap, monkeypatch):
    monkeypatch.setattr(heads, "MOST", 64)  # several chunks
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (150, 33))
    b = torch.randn(33, generator=g, dtype=torch.float64) if bias else None
    z = 0.5 * (hidden @ weight.t() + (0 if b is None else b))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    found = log_squares(hidden.requires_grad_(), Head(weight.requires_grad_(), b, 0.5, softcap))
    assert not found.requires_grad
    assert (found - torch.softmax(z, -1).square().sum(-1).log()).abs().max() < 1e-12


def test_squares_of_nothing():
    assert log_squares(torch.zeros(0, 4), Head(torch.zeros(5, 4), None, 1.0, None)).shape == (0,)


def test_squares_of_bfloat16_are_wide():
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(9, 8).bfloat16()
    assert log_squares(hidden, Head(weight, None, 1.0, None)).dtype == torch.float32


def test_confidence_by_hand():
    """An answer of tokens 1/2 and 1/8 where sums of squares are 1/4 each: sqrt(2 * 1/2) = 1; another's single token 1/6 over 1/3."""
    logps = torch.tensor([0.5, 1 / 6, 0.125]).log().requires_grad_()
    squares = torch.tensor([0.25, 1 / 3, 0.25]).log()
    found = confidence(logps, squares, torch.tensor([1, 0, 1]), 2)
    assert found.tolist() == pytest.approx([0.5, 1.0])
    assert not found.requires_grad


def test_desensitised_by_hand():
    """Two prompts: answers of 3 and 1 tokens, and of 2 and 2. Only what is beyond the first token of the first answer counts less."""
    of_target = torch.tensor([1, 0, 0, 2, 3, 0, 2, 3])
    found = desensitised(of_target, of_target, torch.tensor([0, 0, 1, 1]), 0.25)
    assert found.tolist() == [1.0, 1.0, 0.25, 1.0, 1.0, 0.25, 1.0, 1.0]


def test_desensitised_in_a_list_by_its_shortest():
    of_target = torch.tensor([0, 0, 0, 1, 1, 2])
    found = desensitised(of_target, of_target, torch.tensor([0, 0, 0]), 0.0)
    assert found.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_desensitised_where_an_answer_is_two_examples():
    """The first answer's examples 0 and 1 stand the other way round: of its four tokens those of example 1 are the last."""
    of_target = torch.tensor([0, 0, 1, 1, 1, 0, 0])
    example = torch.tensor([1, 1, 2, 2, 2, 0, 0])
    found = desensitised(of_target, example, torch.tensor([0, 0]), 0.5)
    assert found.tolist() == [1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
