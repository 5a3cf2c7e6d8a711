"""Optimizers: values derived by hand, the libraries' own as oracles, and what all of them promise (groups, state, skipping)."""

import importlib.util
import math
from functools import partial

import pytest
import torch

from builders import FAMILIES, tiny_model
from tunesmith import registry
from tunesmith.training import optimizers
from tunesmith.training.masters import load_state_tensors, state_tensors, update
from tunesmith.training.optimizers import (
    _bitsandbytes,
    adafactor,
    adamw,
    lion,
    muon,
    per_parameter,
    schedule_free,
    sgd,
    state_bytes,
)

NEEDS = {"adamw_8bit": "bitsandbytes", "schedule_free": "schedulefree"}
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None, reason=f"needs {NEEDS.get(name)}"
        ),
    )
    for name in ("adafactor", "adamw", "adamw_8bit", "lion", "muon", "schedule_free", "sgd")
]


def made(name):
    return registry.load("training.optimizers", name).make


def masters(seed=0):
    """A large and a small matrix, experts, an embedding, a vector, and IA3's scales."""
    torch.manual_seed(seed)
    sizes = {
        "q": (90, 70),
        "k": (4, 9),
        "experts": (3, 20, 70),
        "embed_tokens": (97, 64),
        "norm": (31,),
        "ia3_l": (1, 50),
    }
    return {name: torch.randn(size).requires_grad_() for name, size in sizes.items()}


def stepped(optimizer, tensors, steps, scale=1.0, skip=()):
    """Make steps (numbers) with gradients drawn from their number, times `scale`; those in `skip` have none that is finite."""
    for number in steps:
        torch.manual_seed(number)
        for m in tensors.values():
            m.grad = torch.randn_like(m) * scale
            if number in skip:
                m.grad.view(-1)[0] = float("nan")
        each = optimizer.items() if isinstance(optimizer, dict) else [(None, optimizer)]
        for name, own in each:
            grads = [m.grad for n, m in tensors.items() if name in (None, n)]
            update(own, grads, torch.tensor(scale), torch.tensor(float(number in skip)))


def everything(optimizer, tensors):
    return {n: t.detach().clone() for n, t in {**tensors, **state_tensors(optimizer, tensors)}.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def driven(optimizer, w, grads):
    """Return w's values, after each of the gradients."""
    found = []
    for g in grads:
        w.grad = torch.as_tensor(g, dtype=w.dtype).expand_as(w).clone()
        optimizer.step()
        found.append(w.detach().clone())
    return torch.stack(found)


# -- by hand


def test_adamw_by_hand():
    """g = 2, then -1: m = .2, .08; v = .004, .004996; both steps' corrections undone."""
    w = torch.ones(2, 2).requires_grad_()
    found = driven(adamw.make({"w": w}, learning_rate=0.1, weight_decay=0.5), w, [2.0, -1.0])
    first = 0.95 - 0.1 * 1.0
    second = 0.95 * first - 0.1 * (0.08 / 0.19) / math.sqrt(0.004996 / 0.001999)
    assert found[:, 0, 0].tolist() == pytest.approx([first, second], abs=1e-6)


def test_sgd_by_hand():
    """m = 2, then 0.8; the decay is part of the gradient: g = 2 + 0.5, then -1 + 0.5 w."""
    w = torch.ones(2, 2).requires_grad_()
    found = driven(sgd.make({"w": w}, learning_rate=0.1, momentum=0.9), w, [2.0, -1.0])
    assert found[:, 0, 0].tolist() == pytest.approx([0.8, 0.72])
    w = torch.ones(2, 2).requires_grad_()
    found = driven(sgd.make({"w": w}, learning_rate=0.1, momentum=0.9, weight_decay=0.5), w, [2.0, -1.0])
    assert found[:, 0, 0].tolist() == pytest.approx([0.75, 0.75 - 0.1 * (0.9 * 2.5 - 1 + 0.375)])
    w = torch.ones(2, 2).requires_grad_()
    found = driven(sgd.make({"w": w}, learning_rate=0.1, momentum=0.9, nesterov=True), w, [2.0, -1.0])
    assert found[:, 0, 0].tolist() == pytest.approx([1 - 0.1 * (2 + 1.8), 0.62 - 0.1 * (-1 + 0.72)])


def test_lion_by_hand():
    """g = 2: sign +, m = .02; g = -1: .9 x .02 - .1 < 0, so +; the size of the gradient is nothing to it."""
    w = torch.ones(2, 2).requires_grad_()
    optimizer = lion.make({"w": w}, learning_rate=0.1, weight_decay=0.5)
    found = driven(optimizer, w, [2.0, -1.0])
    assert found[:, 0, 0].tolist() == pytest.approx([0.95 - 0.1, 0.95 * 0.85 + 0.1])
    assert optimizer.state[w]["exp_avg"][0, 0].item() == pytest.approx(0.99 * 0.02 - 0.01)


def test_adafactor_by_hand():
    """Of g^2 = [[1, 4], [9, 16]] the rows' means are 2.5 and 12.5, the columns' 5 and 10, all's 7.5; u^2 = .6, 1.2, 1.08, .96."""
    wanted = -torch.tensor([[0.6, 1.2], [1.08, 0.96]]).sqrt()
    for threshold, clipped in ((1.0, 1.0), (0.49, 0.5)):  # rms(u) = sqrt(.96) = .9798
        w = torch.zeros(2, 2, requires_grad=True)
        optimizer = adafactor.make({"w": w}, learning_rate=0.1, clip_threshold=threshold)
        (found,) = driven(optimizer, w, [[[1.0, 2.0], [3.0, 4.0]]])
        factor = 1.0 if threshold == 1 else threshold / math.sqrt(0.96)
        assert clipped == pytest.approx(factor, abs=1e-3)
        assert torch.allclose(found, 0.1 * factor * wanted)


def test_muon_by_hand():
    """Of a diagonal matrix, scaled to norm 1, each number x goes five times through a x + b x^3 + c x^5; ends are within 0.7 and 1.2."""
    values = torch.tensor([3.0, 4.0, 0.0, 12.0])
    x = values / 13
    for _ in range(5):
        x = muon.A * x + muon.B * x**3 + muon.C * x**5
    found = muon.orthogonal(torch.diag(values)).float()
    assert torch.allclose(found, torch.diag(x), atol=0.02)  # bf16's rounding, five times
    assert ((x > 0.65) & (x < 1.25))[[0, 1, 3]].all()
    # m = .05 g and u = .05 g + .95 m, both along g: w = (1 - lr decay) - lr x .2 sqrt(4) O(g)
    w = torch.ones(4, 4).requires_grad_()
    (step,) = driven(muon.make({"w": w}, learning_rate=0.1, weight_decay=0.5), w, [torch.diag(values)])
    assert torch.allclose(step, 0.95 - 0.1 * 0.4 * torch.diag(x), atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="needs schedulefree")
def test_schedule_free_by_hand():
    """g = 2 twice, whose normalised step is 1: z = .9, .8; x, their average, .9, .85; y = .1 z + .9 x = .9, .845."""
    w = torch.ones(2, 2).requires_grad_()
    optimizer = schedule_free.make({"w": w}, learning_rate=0.1)
    assert driven(optimizer, w, [2.0, 2.0])[:, 0, 0].tolist() == pytest.approx([0.9, 0.845])
    optimizer.eval()
    assert w[0, 0].item() == pytest.approx(0.85)


# -- oracles


@pytest.mark.parametrize("how", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_muon_is_torchs(shape, how):
    torch.manual_seed(0)
    ours = torch.randn(shape).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    grads = torch.randn(6, *shape)
    found = driven(muon.make({"w": ours}, learning_rate=0.02, weight_decay=0.1, adjust_lr_fn=how), ours, grads)
    oracle = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn=how)
    assert torch.equal(found, driven(oracle, theirs, grads))


def test_adafactors_direction_is_torchs():
    """torch's differs in the rate alone, max(1e-3, rms(w)) min(lr, 1 / sqrt(t)): divided by either's, six steps agree."""
    torch.manual_seed(0)
    grads, lr = torch.randn(6, 5, 7), 1e-3
    ours = torch.randn(5, 7).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    for optimizer, w in (
        (adafactor.make({"w": ours}, learning_rate=lr), ours),
        (torch.optim.Adafactor([theirs], lr=lr), theirs),
    ):
        before, w.moved = w.detach().clone(), []
        for after in driven(optimizer, w, grads):
            w.moved.append((after - before) / lr / (before.square().mean().sqrt() if w is theirs else 1))
            before = after
    assert torch.allclose(torch.stack(ours.moved), torch.stack(theirs.moved), atol=2e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_lion_is_that_of_bitsandbytes():
    import bitsandbytes

    ours, theirs = masters(), masters()
    optimizer = lion.make(ours, learning_rate=0.01)
    stepped(optimizer, ours, range(5))
    stepped(bitsandbytes.optim.Lion32bit(list(theirs.values()), lr=0.01, betas=(0.9, 0.99)), theirs, range(5))
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_8_bits_are_adamw_between_reading_and_storing():
    """After one step the weights are AdamW's, for nothing was read yet; then moments read from 8 bits go through AdamW's formulas."""
    from bitsandbytes import functional as F

    maps = F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)
    ours, exact = masters(), masters()
    optimizer = made("adamw_8bit")(ours, learning_rate=0.01, weight_decay=0.1)
    stepped(optimizer, ours, [0])
    stepped(adamw.make(exact, learning_rate=0.01, weight_decay=0.1), exact, [0])
    assert all(torch.allclose(ours[n], exact[n], atol=1e-6) for n in ours)
    w = masters()["q"].detach()
    m, v = torch.zeros(2, *w.shape)
    for number in range(4):
        torch.manual_seed(number)
        g = torch.randn_like(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        corrected = (v / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8
        w = w * (1 - 0.01 * 0.1) - 0.01 * m / (1 - 0.9 ** (number + 1)) / corrected
        stored = [F.quantize_blockwise(t, code=c, blocksize=256) for t, c in zip((m, v), maps, strict=True)]
        m, v = (F.dequantize_blockwise(*pair) for pair in stored)
    stepped(optimizer, ours, [1, 2, 3])
    assert (ours["q"] - w).abs().max() < 1e-5
    kinds = {k: t.dtype for k, t in state_tensors(optimizer, ours).items()}
    assert {kinds["q/state1"], kinds["embed_tokens/state2"]} == {torch.uint8}
    assert {kinds[f"{n}/state1"] for n in ("norm", "k", "ia3_l")} == {torch.float32}  # fewer than 4,096 numbers


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_8_bits_in_pieces_are_bitsandbytes_at_once(monkeypatch):
    import bitsandbytes

    monkeypatch.setattr(_bitsandbytes, "PIECE", 512)  # 90 x 70 numbers: 12 pieces and a last one of 156
    ours, theirs = masters(), masters()
    optimizer = made("adamw_8bit")(ours, learning_rate=0.01)
    oracle = bitsandbytes.optim.AdamW8bit(list(theirs.values()), lr=0.01, weight_decay=0.0)
    stepped(optimizer, ours, range(4))
    stepped(oracle, theirs, range(4))
    assert equal(everything(optimizer, ours), everything(oracle, theirs))


@pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="needs schedulefree")
def test_the_runs_warm_up_is_schedule_frees_own():
    from schedulefree import AdamWScheduleFree

    from tunesmith.training.schedules import factor

    ours, theirs = masters(), masters()
    optimizer = schedule_free.make(ours, learning_rate=0.01)
    oracle = AdamWScheduleFree(list(theirs.values()), lr=0.01, warmup_steps=4)
    oracle.train()
    for step in range(9):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["ratio"] * factor("constant", step, 9, 4)
        stepped(optimizer, ours, [step])
        stepped(oracle, theirs, [step])
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


# -- what all of them promise


@pytest.mark.parametrize("name", NAMES)
def test_one_for_all_and_one_for_each_are_the_same_and_go_on_from_each_others_state(name):
    """Six steps at once; six of one optimizer a parameter; three of either and three of the other, from tensors alone: the same bits."""
    make = partial(made(name), ratios={"q": 16.0}, learning_rate=1e-2, weight_decay=0.1)
    one, each = masters(), masters()
    whole, many = make(one), per_parameter(make, each)
    stepped(whole, one, range(6))
    stepped(many, each, range(6))
    assert equal(everything(whole, one), everything(many, each))
    for first, then in ((make, partial(per_parameter, make)), (partial(per_parameter, make), make), (make, make)):
        parts = masters()
        begun = first(parts)
        stepped(begun, parts, range(3))
        kept = everything(begun, parts)
        parts = {n: kept[n].requires_grad_() for n in parts}
        goes_on = then(parts)
        load_state_tensors(goes_on, parts, {k: t for k, t in kept.items() if k not in parts})
        stepped(goes_on, parts, range(3, 6))
        assert equal(everything(whole, one), everything(goes_on, parts))


@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_changes_nothing(name):
    """Steps 0 (before there is any state) and 3 are bad: the others give what they give alone."""
    make = partial(made(name), learning_rate=1e-2, weight_decay=0.1)
    ours, wanted = masters(), masters()
    optimizer, oracle = make(ours), make(wanted)
    stepped(optimizer, ours, range(6), skip=(0, 3))
    stepped(oracle, wanted, (1, 2, 4, 5))
    assert equal(everything(optimizer, ours), everything(oracle, wanted))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_times_a_power_of_two_and_divided_by_it_are_the_same(name):
    make = partial(made(name), learning_rate=1e-2)
    plain, scaled = masters(), masters()
    optimizers_ = make(plain), make(scaled)
    stepped(optimizers_[0], plain, range(4))
    stepped(optimizers_[1], scaled, range(4), scale=2.0**12)
    assert equal(everything(optimizers_[0], plain), everything(optimizers_[1], scaled))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_kept_for_those_who_read_them_after_the_step(name):
    tensors = masters()
    optimizer = made(name)(tensors, learning_rate=1e-2)
    for m in tensors.values():
        m.grad = torch.full_like(m, 8.0)
    update(optimizer, [m.grad for m in tensors.values()], torch.tensor(4.0), torch.tensor(0.0), keep=True)
    assert all((m.grad == 2).all() for m in tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_matrices_alone_decay_and_each_has_its_ratio(name):
    """With gradients 0 a step is the decay alone: 1 - lr ratio decay for matrices, nothing for vectors and IA3's scales of (1, n)."""
    tensors = masters()
    before = {n: m.detach().clone() for n, m in tensors.items()}
    optimizer = made(name)(tensors, {"q": 4.0, "norm": 2.0}, learning_rate=0.01, weight_decay=0.5)
    assert {id(p): g["ratio"] for g in optimizer.param_groups for p in g["params"]} == {
        id(m): {"q": 4.0, "norm": 2.0}.get(n, 1.0) for n, m in tensors.items()
    }
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["ratio"]
    for m in tensors.values():
        m.grad = torch.zeros_like(m)
    update(optimizer, [m.grad for m in tensors.values()], torch.tensor(1.0), torch.tensor(0.0))
    shrunk = {"q": 0.98, "k": 0.995, "experts": 0.995, "embed_tokens": 0.995, "norm": 1.0, "ia3_l": 1.0}
    for n, m in tensors.items():
        assert torch.allclose(m, before[n] * shrunk[n], rtol=1e-6), n


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_are_those_that_are_kept(name):
    tensors = masters()
    optimizer = made(name)(tensors, learning_rate=1e-2)
    stepped(optimizer, tensors, [0])
    kept = sum(t.nbytes for t in state_tensors(optimizer, tensors).values() if t.ndim)  # but for counts of steps
    assert state_bytes(name, [(n, m.shape) for n, m in tensors.items()]) == kept


def test_state_bytes_by_hand():
    shapes = [("w", (1000, 4000)), ("norm", (1000,))]
    assert state_bytes("adamw", shapes) == state_bytes("paged_adamw", shapes) == 8 * 4_001_000
    assert (
        state_bytes("adamw_8bit", shapes)
        == state_bytes("paged_adamw_8bit", shapes)
        == 2 * (4_000_000 + 4 * 15_625) + 8_000
    )
    assert state_bytes("lion", shapes) == state_bytes("sgd", shapes) == 4 * 4_001_000
    assert state_bytes("muon", [*shapes, ("model.lm_head.weight", (10, 4000))]) == 4 * 4_000_000 + 8 * (1000 + 40_000)
    assert state_bytes("adafactor", [*shapes, ("experts", (8, 10, 30))]) == 4 * (5000 + 1000 + 8 * 40)
    assert (
        optimizers.on_device("adamw", shapes, "cuda") == optimizers.on_device("adamw", shapes, "cpu") == 8 * 4_001_000
    )
    assert optimizers.on_device("paged_adamw", shapes, "cuda") == 0


# -- Muon's matrices


def test_muon_takes_experts_one_by_one():
    torch.manual_seed(0)
    experts = torch.randn(3, 20, 8)
    found = muon.orthogonal(experts)
    for expert, alone in zip(found, experts, strict=True):
        assert torch.allclose(expert.float(), muon.orthogonal(alone).float(), atol=0.03)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_muons_matrices_are_those_between_hidden_states(family):
    """Known by name; here by what the module is: no embedding, not the head, no vector."""
    model = tiny_model(family)
    modules = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)] + [model.get_output_embeddings()]
    tokens = {id(p) for m in modules if m is not None for p in m.parameters()}
    for name, p in model.named_parameters():
        wanted = p.ndim >= 2 and id(p) not in tokens and not name.endswith("bias")  # experts' biases are (experts, n)
        assert muon.is_hidden(f"model.{name}", p.shape) == wanted, name


def test_muon_over_lora_takes_a_and_b_and_over_an_embeddings_neither():
    for name in ("q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"):
        assert muon.is_hidden(f"model.base_model.model.model.layers.0.self_attn.{name}", (16, 64))
    for name in ("embed_tokens.lora_embedding_A.default", "prompt_encoder.default.embedding.weight"):
        assert not muon.is_hidden(f"model.base_model.{name}", (16, 64))
