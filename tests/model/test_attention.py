"""Flat attention equals plain causal attention on each segment alone, forward and backward."""

import pytest
import torch

from tunesmith.model import attention


def alone(q, k, v, lengths):
    """Each segment by the definition: softmax(q k^T / sqrt(d) + causal) v; heads share keys in order."""
    out, start = [], 0
    per = q.shape[1] // k.shape[1]
    for n in lengths:
        a, b, c = (
            x[start : start + n].transpose(0, 1) for x in (q, k.repeat_interleave(per, 1), v.repeat_interleave(per, 1))
        )
        scores = a @ b.transpose(1, 2) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        out.append((scores.softmax(-1) @ c).transpose(0, 1))
        start += n
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [(5, 5, 5), (9, 8, 3, 1), (1,), (40, 39, 33, 12, 11, 2)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("long", [640, 10])
def test_equals_each_segment_alone(monkeypatch, lengths, heads, long):
    monkeypatch.setattr(attention, "LONG", long)  # segments beyond it go through torch's own kernel
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (
        torch.randn(total, h, 8, dtype=torch.float64, requires_grad=True) for h in (heads[0], heads[1], heads[1])
    )
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    segments = attention.plan(lengths, cu)
    assert segments.groups[0].start == 0
    assert segments.groups[-1].stop == total
    out, _ = attention.flat_attention(
        torch.nn.Module(), *(x.transpose(0, 1)[None] for x in (q, k, v)), None, segments=segments
    )
    wanted = alone(q, k, v, lengths)
    torch.testing.assert_close(out[0], wanted, atol=1e-12, rtol=0)
    weight = torch.randn_like(wanted)
    got = torch.autograd.grad((out[0] * weight).sum(), (q, k, v))
    for a, b in zip(got, torch.autograd.grad((wanted * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "unknown", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"sliding_window": 4}, {"dropout": 0.1}]
)
def test_what_it_does_not_compute_raises(unknown):
    x = torch.zeros(1, 2, 6, 4)
    segments = attention.plan((6,), torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="flat attention"):
        attention.flat_attention(torch.nn.Module(), x, x, x, None, segments=segments, **unknown)


@pytest.mark.parametrize("version", ["2.10", "2.12"])
def test_the_gpu_kernel_is_asked_in_the_words_of_its_version(monkeypatch, version):
    """torch 2.10's kernel knows no scale and no grouped heads; a stand-in with each signature gives the definition's numbers."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    lengths = (7, 4)

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        assert is_causal
        assert key.shape == query.shape
        return alone(query, key, value, lengths)

    def new(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0)
        assert enable_gqa
        return alone(query * (scale * query.shape[-1] ** 0.5), key, value, lengths)

    monkeypatch.setattr(varlen, "varlen_attn", old if version == "2.10" else new)
    torch.manual_seed(0)
    q, k, v = (torch.randn(11, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    segments = attention.plan(lengths, torch.tensor([0, 7, 11], dtype=torch.int32))
    got = attention._on_gpu(q, k, v, segments, 0.2)
    assert (got - alone(q * (0.2 * 8**0.5), k, v, lengths)).abs().max() <= 1e-12
