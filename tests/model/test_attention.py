"""Flat attention equals attention by its definition on each sequence alone, forward and backward."""

import numpy as np
import pytest
import torch

from tunesmith.model import attention, attention_cpu


def seen(prefix, length, window):
    """(length, prefix + length): whether token prefix + i sees token j, as transformers' masks say it."""
    i, j = torch.arange(prefix, prefix + length)[:, None], torch.arange(prefix + length)[None]
    return (j <= i) if window is None else (j <= i) & (j > i - window)


def by_definition(q, k, v, lengths, parents, scale, window=None, softcap=None, sinks=None):
    """Every segment's queries over [its prefix; itself]: one dense softmax per segment, heads share keys in order."""
    per = q.shape[1] // k.shape[1]
    starts = [0, *np.cumsum(lengths).tolist()]
    out = []
    for s, n in enumerate(lengths):
        own, p = list(range(starts[s], starts[s + 1])), parents[s]
        keys = (list(range(starts[p], starts[p + 1])) if p >= 0 else []) + own
        a = q[own].transpose(0, 1)
        b, c = (x[keys].repeat_interleave(per, 1).transpose(0, 1) for x in (k, v))
        scores = a @ b.transpose(1, 2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen(len(keys) - n, n, window), float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, n, 1)], -1)
        out.append((scores.softmax(-1)[..., : len(keys)] @ c).transpose(0, 1))
    return torch.cat(out)


def tensors(total, heads, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(total, heads[0], 8), (total, heads[1], 8), (total, heads[1], 8)]
    return [torch.randn(s, dtype=dtype, generator=generator).requires_grad_() for s in shapes]


def planned(lengths, parents):
    cu = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)
    return attention.plan(lengths, cu, parents)


def flat(q, k, v, segments, **terms):
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attention.flat_attention(torch.nn.Module(), *heads_first, None, segments=segments, **terms)[0][0]


LAYOUTS = {
    "equal": ((5, 5, 5), (-1, -1, -1)),
    "one": ((1,), (-1,)),
    "mixed": ((40, 39, 33, 12, 11, 2), (-1,) * 6),
    "prefix": ((30, 7, 21, 9, 1), (-1, -1, 0, 0, 0)),
    "two prefixes": ((19, 17, 3, 18, 18, 2, 40, 1), (-1, -1, -1, 0, 0, 0, 1, 1)),
}
FEATURES = {
    "plain": {},
    "window": {"sliding_window": 6},
    "window 1": {"sliding_window": 1},
    "cap": {"softcap": 1.5},
    "sinks": {"s_aux": True},
    "all": {"sliding_window": 9, "softcap": 2.0, "s_aux": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize(("block", "long"), [(128, 640), (16, 640), (16, 20)])
def test_equals_the_definition(monkeypatch, layout, features, heads, block, long):
    """Outputs and gradients of everything, the sinks too: probabilities kept or computed again, in one tile or several."""
    monkeypatch.setattr(attention_cpu, "BLOCK", block)
    monkeypatch.setattr(attention_cpu, "LONG", long)
    lengths, parents = LAYOUTS[layout]
    terms = dict(FEATURES[features])
    leaves = tensors(sum(lengths), heads)
    if terms.get("s_aux"):
        terms["s_aux"] = torch.linspace(-1, 2, heads[0], dtype=torch.float64).requires_grad_()
        leaves.append(terms["s_aux"])
    got = flat(*leaves[:3], planned(lengths, parents), scaling=0.6, **terms)
    names = {"sliding_window": "window", "s_aux": "sinks"}
    wanted = by_definition(
        *leaves[:3], lengths, parents, 0.6, **{names.get(name, name): x for name, x in terms.items()}
    )
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    weight = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((got * weight).sum(), leaves)
    for a, b in zip(gradients, torch.autograd.grad((wanted * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_a_window_no_shorter_than_the_longest_sequence_is_none():
    q, k, v = tensors(12, (4, 2))
    segments = planned((6, 4, 2), (-1, 0, 0))
    assert segments.reach == 10
    assert torch.equal(flat(q, k, v, segments, sliding_window=10), flat(q, k, v, segments))
    assert not torch.equal(flat(q, k, v, segments, sliding_window=9), flat(q, k, v, segments))


def test_the_plan_by_hand(monkeypatch):
    """Segments of 40, 33 and 5 tokens and three of 3, 2 and 1 that continue the first: padded to 64, 32 and 32, a group for each parent."""
    segments = planned((40, 33, 5, 3, 2, 1), (-1, -1, -1, 0, 0, 0))
    facts = [(g.at, g.count, g.length, g.prefix_start, g.prefix) for g in segments.groups]
    assert facts == [(0, 2, 64, 0, 0), (128, 1, 32, 0, 0), (160, 3, 32, 0, 40)]
    assert segments.index[64:98].tolist() == [*range(40, 73), 84]
    assert segments.cu_keys.tolist() == [0, 40, 73, 78, 121, 163, 204]
    assert segments.keys[78:121].tolist() == [*range(40), 78, 79, 80]
    assert (segments.longest, segments.reach, segments.linked) == (40, 43, True)
    monkeypatch.setattr(attention, "PAIRS", 2 * 32 * 72)  # at most two such segments in a tile
    assert [g.count for g in planned((40, 33, 5, 3, 2, 1), (-1, -1, -1, 0, 0, 0)).groups] == [1, 1, 1, 2, 1]


def test_probabilities_of_long_sequences_are_not_kept(monkeypatch):
    """What the backward pass keeps grows with the tokens beyond LONG keys; below, with their square."""
    monkeypatch.setattr(attention_cpu, "LONG", 200)
    kept = {}
    for n in (192, 256, 512):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()), lambda x: x):
            flat(*tensors(n, (2, 1)), planned((n,), (-1,)))
        kept[n] = sum(sizes)
    assert kept[512] == 2 * kept[256] == 512 * (2 + 1 + 1) * 8
    assert kept[192] > 2 * 192**2 / 2


@pytest.mark.parametrize("long", [640, 0])
def test_dropout_is_the_same_forward_and_backward(monkeypatch, long):
    """With the identity as values the output is the weights: read which were dropped there, and differentiate by autograd."""
    monkeypatch.setattr(attention_cpu, "LONG", long)
    n, rate = 8, 0.4
    q, k, _ = tensors(n, (4, 2))
    eye = torch.eye(n, dtype=torch.float64)[:, None].repeat(1, 2, 1).requires_grad_()
    segments = planned((n,), (-1,))

    def dropped(q, k, v):
        torch.manual_seed(3)
        return flat(q, k, v, segments, dropout=rate)

    weights = flat(q, k, eye, segments).detach()
    factor = torch.where(weights > 0, dropped(q, k, eye).detach() / weights, 0).transpose(0, 1)
    seen_entries = factor[:, torch.ones(n, n).tril().bool()]
    assert ((seen_entries.abs() < 1e-9) | ((seen_entries - 1 / (1 - rate)).abs() < 1e-9)).all()
    assert 0.4 < float((seen_entries > 0).double().mean()) < 0.8
    v = torch.randn(n, 2, 8, dtype=torch.float64, requires_grad=True)
    scores = q.transpose(0, 1) @ k.repeat_interleave(2, 1).transpose(0, 1).transpose(1, 2) * 8**-0.5
    p = scores.masked_fill(~seen(0, n, None), float("-inf")).softmax(-1) * factor
    wanted = (p @ v.repeat_interleave(2, 1).transpose(0, 1)).transpose(0, 1)
    got = dropped(q, k, v)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    weight = torch.randn_like(wanted)
    gradients = torch.autograd.grad((got * weight).sum(), (q, k, v))
    for a, b in zip(gradients, torch.autograd.grad((wanted * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    other = flat(q, k, v, segments, dropout=rate)
    assert not torch.equal(other, flat(q, k, v, segments, dropout=rate)), "every call drops its own"


@pytest.mark.parametrize("features", FEATURES)
def test_bf16_is_as_near_as_the_definition_in_bf16(features):
    """Distances from float64, of outputs and gradients, are at most those of plain bf16 operations."""
    lengths, parents = (150, 140, 40, 39, 30), (-1, -1, -1, 0, 0)
    terms = {**FEATURES[features]}
    wanted, errors = None, {}
    for how, dtype in (("float64", torch.float64), ("plain", torch.bfloat16), ("flat", torch.bfloat16)):
        leaves = [x.detach().to(torch.bfloat16).to(dtype).requires_grad_() for x in tensors(sum(lengths), (6, 2))]
        if terms.get("s_aux") is not None:
            terms["s_aux"] = torch.linspace(-1, 2, 6).to(dtype).requires_grad_()
            leaves.append(terms["s_aux"])
        if how == "flat":
            out = flat(*leaves[:3], planned(lengths, parents), scaling=0.6, **terms)
        else:
            names = {"sliding_window": "window", "s_aux": "sinks"}
            out = by_definition(*leaves[:3], lengths, parents, 0.6, **{names.get(n, n): x for n, x in terms.items()})
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(dtype)
        found = [x.detach().double() for x in (out, *torch.autograd.grad((out * weight).sum(), leaves))]
        wanted = wanted or found
        errors[how] = [float((a - b).norm() / (b.norm() + 1e-9)) for a, b in zip(found, wanted, strict=True)]
    assert all(a <= 1.1 * b + 1e-4 for a, b in zip(errors["flat"], errors["plain"], strict=True)), errors


@pytest.mark.parametrize(
    "unknown", [{"position_bias": torch.zeros(1)}, {"is_causal": False}, {"attention_mask": torch.zeros(1, 1, 6, 6)}]
)
def test_what_it_does_not_compute_raises(unknown):
    x = torch.zeros(1, 2, 6, 4)
    mask = unknown.pop("attention_mask", None)
    with pytest.raises(ValueError, match="flat attention does not compute"):
        attention.flat_attention(torch.nn.Module(), x, x, x, mask, segments=planned((6,), (-1,)), **unknown)
