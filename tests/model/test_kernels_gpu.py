"""The Triton kernels equal plain torch in float64 but for rounding: on a GPU, or else under Triton's interpreter on a CPU."""

import importlib
import sys
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from fusing import ADAPTERS, adapted, assert_equal, run

from tunesmith.model import fused, fused_mlp, kernels
from tunesmith.model.lora import fuse

NAME = "tunesmith.model.kernels_gpu"
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(scope="module")
def own():
    """The module of the kernels. For the interpreter all of Triton's Python has to be imported under its variable."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if DEVICE.type == "cuda":
        yield importlib.import_module(NAME)
        return
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "triton" and not n.startswith("triton._C")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in (*before, NAME):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(NAME)
        for name in [n for n in sys.modules if n.split(".")[0] == "triton" and not n.startswith("triton._C")]:
            del sys.modules[name]
        del sys.modules[NAME]


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_results_and_gradients_are_those_of_plain_torch(own, dtype):
    assert kernels.agree(own, DEVICE, dtype)


@pytest.mark.parametrize("name", ["rms_forward", "rms_backward", "rotary", "gated", "gated_backward"])
def test_a_kernel_that_errs_is_not_used(own, name, monkeypatch):
    right = getattr(own, name)

    def wrong(*arguments, **words):
        found = right(*arguments, **words)
        (found if torch.is_tensor(found) else found[0]).view(-1)[-1] += 1
        return found

    monkeypatch.setattr(own, name, wrong)
    assert not kernels.agree(own, DEVICE, torch.float32)


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (200, 3), (37, 33), (5, 4097)])
def test_norms_of_many_short_rows_and_few_long_ones(own, rows, width, monkeypatch):
    """More tiles than stripes, so that programs take several; a width just above a block."""
    monkeypatch.setattr(own, "STRIPES", 3)
    monkeypatch.setattr(own, "TILE", 64)
    torch.manual_seed(0)
    x, w, dy = (torch.randn(*size, device=DEVICE) for size in ((rows, width), (width,), (rows, width)))
    hx, hw = (t.double().requires_grad_() for t in (x, w))
    wanted = hw * hx * (hx.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    y, r = own.rms_forward(x, w, 1e-5)
    ours = (y, *own.rms_backward(x, w, r, dy, True))
    for got, theirs in zip(ours, (wanted, *torch.autograd.grad(wanted, (hx, hw), dy.double())), strict=True):
        torch.testing.assert_close(got.double(), theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_pytorch_tanh"}], ids=["silu", "gelu"])
def test_a_model_computes_with_them_what_it_does_without(own, changes, monkeypatch):
    model = adapted("llama", torch.float32, ADAPTERS["lora"], base=True, **changes).to(DEVICE)
    ids = torch.randint(0, 97, (2, 13), device=DEVICE)
    wanted = run(deepcopy(model), ids)
    used = []
    for module in (fused, fused_mlp):
        monkeypatch.setattr(module, "gpu_kernels", lambda x: used.append(x) or own)
    fuse(model)
    assert_equal(run(model, ids), wanted, torch.float32)
    assert used


def test_plain_torch_computes_on_a_cpu():
    kernels.try_out(torch.device("cpu"))
    assert kernels.gpu_kernels(torch.ones(3)) is None


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_on_a_gpu_they_are_used_and_reach_beyond_32_bits(own, dtype):
    kernels.try_out(DEVICE)
    assert kernels.gpu_kernels(torch.ones(3, dtype=dtype, device=DEVICE)) is own
    x = torch.randn(1, 4096, dtype=dtype, device=DEVICE).repeat(2**31 // 4096 + 3, 1)
    y, _ = own.rms_forward(x, torch.ones(4096, dtype=dtype, device=DEVICE), 1e-5)
    assert torch.equal(y[-1], y[0])
