"""The varlen kernel is asked in the words of its version: stand-ins with each signature, by their documentation, in plain torch."""

import pytest
import torch
from test_attention import by_definition, planned, tensors

from tunesmith.model import attention_gpu
from tunesmith.model.attention_cpu import Terms

LAYOUTS = {
    "alone": ((7, 4, 3), (-1, -1, -1)),
    "linked": ((9, 4, 6, 2, 5), (-1, -1, 0, 0, 1)),
}


def documented(query, key, value, cu_q, cu_k, scale, window):
    """Queries and keys are aligned at their ends; (left, right): keys from `left` before a query to `right` behind it; -1: all."""
    left, right = window
    out = []
    for a, b, c, d in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        q, k, v = query[a:b].transpose(0, 1), key[c:d].transpose(0, 1), value[c:d].transpose(0, 1)
        distance = torch.arange(d - c)[None] - torch.arange((d - c) - (b - a), d - c)[:, None]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if left >= 0:
            hidden |= distance < -left
        if right >= 0:
            hidden |= distance > right
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def first(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """torch 2.10: no scale, no grouped heads, no window."""
    assert is_causal
    assert key.shape[1] == query.shape[1]
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    return documented(query, key, value, cu_seq_q, cu_seq_k, query.shape[-1] ** -0.5, (-1, 0))


def later(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """torch 2.12 and later."""
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    per = query.shape[1] // key.shape[1]
    assert enable_gqa or per == 1
    key, value = (x.repeat_interleave(per, 1) for x in (key, value))
    return documented(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


@pytest.fixture(params=[first, later])
def kernel(request, monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", request.param)
    attention_gpu._keywords.cache_clear()
    yield request.param
    attention_gpu._keywords.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_the_kernel_gives_the_definition(kernel, layout, window, heads):
    """Outputs and gradients, where the kernel says it can; without window_size it says that it cannot do a window."""
    lengths, parents = LAYOUTS[layout]
    segments, terms = planned(lengths, parents), Terms(0.2, window)
    if window is not None and kernel is first:
        assert not attention_gpu.computes(torch.zeros(1, 1, 8, dtype=torch.bfloat16), None, segments, terms)
        return
    leaves = tensors(sum(lengths), heads)
    got = attention_gpu.attention(*leaves, segments, terms)
    wanted = by_definition(*leaves, lengths, parents, 0.2, window)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((wanted * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("changes", "able"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float64}, False),
        ({"capability": (7, 5)}, False),
        ({"width": 320}, False),
        ({"sinks": torch.zeros(2)}, False),
        ({"terms": Terms(1.0, softcap=30.0)}, False),
        ({"terms": Terms(1.0, dropout=0.1)}, False),
        ({"terms": Terms(1.0, window=100)}, True),
    ],
)
def test_what_the_kernel_is_not_asked(monkeypatch, kernel, changes, able):
    facts = {"dtype": torch.bfloat16, "capability": (9, 0), "width": 64, "sinks": None, "terms": Terms(1.0), **changes}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: facts["capability"])
    q = torch.zeros(5, 2, facts["width"], dtype=facts["dtype"])
    assert attention_gpu.computes(q, facts["sinks"], planned((5,), (-1,)), facts["terms"]) == able


def test_the_installed_torch_is_asked_for_what_it_takes():
    """Every keyword that is used when known means what the stand-ins take it for; one of the two ways to say causal is there."""
    pytest.importorskip("torch.nn.attention.varlen")
    attention_gpu._keywords.cache_clear()
    known = attention_gpu._keywords()
    assert {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= known
    assert "window_size" in known or "is_causal" in known


def test_gradients_of_a_prefix_are_added_in_fp32():
    """256 copies of a bf16 token with gradients 1 and then 255 times 2^-8: in bf16 one by one the sum would stay at 1."""
    x = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    copies = attention_gpu._Copies.apply(x, torch.zeros(257, dtype=torch.int64))
    copies.backward(torch.tensor([1.0] + 256 * [2**-8], dtype=torch.bfloat16)[:, None, None])
    assert float(x.grad) == 2.0
