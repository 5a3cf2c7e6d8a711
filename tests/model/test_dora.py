"""DoRA's row norms: by the definition, computed once per optimizer step, and never of weights that are gone."""

from copy import deepcopy

import pytest
import torch
from fusing import ADAPTERS, adapted, assert_equal, run
from torch import nn

from tunesmith.model import dora, lora
from tunesmith.model.lora import fuse


class Layer:
    """A weight, A and B, and how often W was asked for."""

    def __init__(self, dtype=torch.float64):
        torch.manual_seed(0)
        self.module = nn.Linear(7, 5, dtype=dtype)
        self.w = self.module.weight.requires_grad_(False)
        self.a, self.b = (nn.Parameter(torch.randn(*size, dtype=dtype)) for size in ((3, 7), (5, 3)))
        self.scale, self.asked = 0.7, 0

    def norms(self):
        return dora.row_norms(self.module, self.w, self.full, self.a, self.b, self.scale)

    def full(self):
        self.asked += 1
        return self.w

    def wanted(self):
        return torch.linalg.norm(self.w + self.scale * self.b @ self.a, dim=1).detach()


def test_norms_are_those_of_the_sum():
    layer = Layer()
    torch.testing.assert_close(layer.norms(), layer.wanted(), atol=1e-12, rtol=0)
    assert Layer(torch.bfloat16).norms().dtype == torch.float32
    by_hand = Layer()
    with torch.no_grad():
        by_hand.w.zero_()[0, 0] = 3.0
        by_hand.a.zero_()[0, 1] = 2.0
        by_hand.b.zero_()[0, 0] = 4 / (2 * 0.7)
    assert by_hand.norms()[0].item() == pytest.approx(5.0, abs=1e-12)  # (3, 4, 0, ...)


def test_they_are_computed_once_for_the_same_numbers():
    layer = Layer()
    first = layer.norms()
    assert layer.norms() is first
    assert layer.asked == 2  # for ||W||^2, and for W A^T
    with torch.no_grad():
        layer.a.add_(1)
    layer.norms()
    assert layer.asked == 3  # ||W||^2 stays


def _fused_step(layer):
    layer.a.grad = torch.ones_like(layer.a)
    torch.optim.AdamW([layer.a], lr=0.1, fused=True).step()  # which leaves a parameter's version as it is


def _step_through_data(layer):
    class Other(torch.optim.Optimizer):
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.mul_(2)

    Other([layer.b], {}).step()


def _loaded(layer):
    holder = nn.ParameterDict({"a": layer.a})
    holder.load_state_dict({"a": layer.a.detach() + 1})


def _replaced_twice(layer):
    for _ in range(2):
        layer.w.data = layer.w.data * 2  # the second may lie where the first did


def _written(layer):
    with torch.no_grad():
        torch._foreach_copy_([layer.b], [layer.b * 3])


def _scaled(layer):
    layer.scale = 2.0


def _averaged(layer):
    """Schedule-free's other weights come and go without a step."""
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree([layer.a], lr=0.1)
    optimizer.train()
    for sign in (1, -1, 1):
        layer.a.grad = torch.full_like(layer.a, sign)
        optimizer.step()
    trained = layer.norms().clone()
    optimizer.eval()
    assert not torch.allclose(trained, layer.wanted())


@pytest.mark.parametrize(
    "change", [_fused_step, _step_through_data, _loaded, _replaced_twice, _written, _scaled, _averaged]
)
def test_whatever_changes_them_is_seen(change):
    layer = Layer()
    before = layer.norms().clone()
    change(layer)
    assert not torch.allclose(before, layer.wanted())
    torch.testing.assert_close(layer.norms(), layer.wanted(), atol=1e-12, rtol=0)


def test_steps_equal_those_of_peft():
    """fp32: the parameters are stepped in place, by a fused optimizer; two micro-batches each."""
    plain = adapted("llama", torch.float32, ADAPTERS["dora"])
    model = deepcopy(plain)
    fuse(model)
    ids = torch.randint(0, 97, (4, 11))
    ends = []
    for m in (plain, model):
        optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.02, eps=1e-4, fused=True)
        for _ in range(3):
            for half in ids.split(2):
                torch.log_softmax(m(input_ids=half, use_cache=False).logits, -1)[..., 5].mean().neg().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(run(m, ids))
    assert_equal(ends[1], ends[0], torch.float32)


def test_micro_batches_and_recomputed_layers_share_them(monkeypatch):
    from tunesmith.model.activations import checkpoint_activations

    model = adapted("llama", torch.float64, ADAPTERS["dora"])
    fuse(model)
    checkpoint_activations(model, "full")
    asked = []
    monkeypatch.setattr(lora, "_full", lambda base, like: asked.append(base) or base.weight)
    run(model, torch.randint(0, 97, (2, 5)))
    run(model, torch.randint(0, 97, (2, 9)))
    assert (
        len(asked) == 2 * 14
    )  # of each layer for ||W||^2 and for W A^T, over two micro-batches and their second passes


def test_merged_and_unmerged_they_are_those_of_the_weights_as_they_are():
    model = adapted("llama", torch.float64, ADAPTERS["dora"]).eval()
    fuse(model)
    ids = torch.arange(9)[None]
    wanted = model(ids).logits
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-10, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-10, rtol=0)
