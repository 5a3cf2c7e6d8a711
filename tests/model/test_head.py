"""The head: log-probs and gradients against float64, in bf16 too, and where the target's probability is beyond 0.999."""

import pytest
import torch

from tunesmith.model import head


def reference(hidden, weight, targets, softcap=None):
    """log p and d(sum of c * log p) by autograd in float64."""
    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    z = h @ w.t()
    if softcap:
        z = torch.tanh(z / softcap) * softcap
    logp = torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0]
    logp.sum().backward()
    return logp.detach(), h.grad, w.grad


def case(scale, n=37, width=16, vocabulary=211, dtype=torch.float64):
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, width)
    targets = torch.randint(0, vocabulary, (n,))
    hidden = torch.randn(n, width) * 0.1 + scale * weight[targets] / weight[targets].norm(dim=1, keepdim=True)
    return hidden.to(dtype), weight.to(dtype), targets


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("keep", [0, 2**30])
def test_equals_autograd_in_float64(monkeypatch, trained, softcap, keep):
    monkeypatch.setattr(head, "_keeps", lambda *_: bool(keep))
    monkeypatch.setattr(head, "MOST", 10)
    hidden, weight, targets = case(2.0)
    logp, dh, dw = reference(hidden, weight, targets, softcap)
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    got = head.target_logps(hidden, weight, targets, softcap)
    got.sum().backward()
    torch.testing.assert_close(got, logp, atol=1e-10, rtol=0)
    torch.testing.assert_close(hidden.grad, dh, atol=1e-10, rtol=0)
    if trained:
        torch.testing.assert_close(weight.grad, dw, atol=1e-10, rtol=0)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("scale", [0.5, 4.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float64(scale, trained, dtype):
    """bf16 rounds the logits (relative 2^-9) and the residuals once; the error is bounded by that, also where p > 0.999."""
    hidden, weight, targets = case(scale, dtype=dtype)
    logp, dh, _ = reference(hidden, weight, targets)
    if scale == 12.0:
        assert (logp.exp() > 0.999).float().mean() > 0.5
    hidden.requires_grad_()
    weight.requires_grad_(trained)
    got = head.target_logps(hidden, weight, targets)
    assert got.dtype == torch.float32
    got.sum().backward()
    largest = (hidden.detach().double() @ weight.detach().double().t()).abs().max().item()
    bound = 2 * largest * 2**-9
    # d log p = sum_j (1[j=y] - p_j) dz_j: an error of the logits counts by how far p is from certainty
    assert ((got.double() - logp).abs() <= bound * (1 - logp.exp()) * 1.5 + 1e-6).all()
    # every residual carries a relative error of at most 2 * bound (from the logits) + 2^-8 (from its own rounding)
    p_other = 1 - logp.exp()
    allowed = (
        (2 * bound + 2**-7) * p_other[:, None] * 2 * weight.detach().double().abs().max() + 2**-8 * dh.abs() + 1e-7
    )
    assert ((hidden.grad.double() - dh).abs() <= allowed).all()


def test_the_gradient_does_not_vanish_near_certainty():
    """At 1 - p = 1e-6 a difference taken after rounding p to bf16 (or as 1 - p in fp32) is 0 or 6% off; ours is right to bf16's 2^-8."""
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    hidden = torch.tensor([[13.8125]], dtype=torch.bfloat16, requires_grad=True)
    head.target_logps(hidden, weight, torch.tensor([0])).sum().backward()
    exact = 1 / (1 + torch.exp(torch.tensor(13.8125, dtype=torch.float64)))
    assert abs(hidden.grad.item() - exact.item()) <= 2**-8 * exact.item()


@pytest.mark.parametrize("keep", [0, 2**30])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("scale", [2.0**4, 2.0**10, 2.0**16])
def test_fp16_keeps_small_residuals_for_the_loss_scale(monkeypatch, scale, trained, keep):
    """At 1 - p = 1e-6 the residual is between fp16's last numbers, 6e-8 apart; the loss scale comes only afterwards."""
    monkeypatch.setattr(head, "_keeps", lambda *_: bool(keep))
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float16, requires_grad=trained)
    hidden = torch.tensor([[13.8125]], dtype=torch.float16, requires_grad=True)
    (head.target_logps(hidden, weight, torch.tensor([0])).sum() * scale).backward()
    exact = scale / (1 + torch.exp(torch.tensor(13.8125, dtype=torch.float64)))
    # what is returned is fp16 as well: half of its least step, where the scale leaves it so small
    assert abs(hidden.grad.item() - exact.item()) <= 0.01 * exact.item() + 2**-25
    if trained:
        for found, sign in zip(weight.grad[:, 0].tolist(), (1, -1), strict=True):
            assert abs(found - sign * 13.8125 * exact.item()) <= 0.01 * 13.8125 * exact.item() + 2**-25


def test_no_targets():
    hidden = torch.zeros(0, 4, requires_grad=True)
    for trained in (True, False):
        got = head.target_logps(hidden, torch.zeros(5, 4, requires_grad=trained), torch.zeros(0, dtype=torch.int64))
        assert got.shape == (0,)


def test_residuals_are_kept_where_that_is_less_than_a_sum_of_their_products_takes(monkeypatch):
    """V = 10, H = 4, fp32: sum and product take 10 x 4 x 8 bytes, as many as the residuals of 8 rows; KEEP may allow more."""
    weight = torch.zeros(10, 4)
    monkeypatch.setattr(head, "KEEP", 0)
    assert [head._keeps(torch.zeros(n, 4), weight) for n in (8, 9)] == [True, False]
    monkeypatch.setattr(head, "KEEP", 10 * 9 * 4)
    assert head._keeps(torch.zeros(9, 4), weight)
