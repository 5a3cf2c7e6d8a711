"""On a CUDA device: attention equals the definition in every feature. Run by `make test-slow`."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model
from tunesmith.model import attention
from tunesmith.model.policy import make_policy
from tunesmith.training.batch import collate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("parents", [(-1, -1, -1, -1), (-1, -1, 0, 0)], ids=["apart", "linked"])
@pytest.mark.parametrize("feature", [{}, {"sliding_window": 50}, {"softcap": 20.0}, {"s_aux": True}], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_attention_equals_the_cpu_in_float64(heads, feature, parents):
    """bf16 in, bf16 out: within bf16's rounding of the float64 result, forward and backward, by the kernel or by products."""
    lengths = (300, 129, 17, 1)
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(total, h, 64).bfloat16() for h in (heads[0], heads[1], heads[1]))
    weight, sinks = torch.randn(total, heads[0], 64).bfloat16(), torch.randn(heads[0])
    cu = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32)

    def run(device, dtype):
        inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        segments = attention.plan(lengths, cu.to(device), parents)
        views = [x.transpose(0, 1)[None] for x in inputs]
        given = {**feature, "s_aux": sinks.to(device, dtype)} if "s_aux" in feature else feature
        out, _ = attention.flat_attention(torch.nn.Module(), *views, None, segments=segments, **given)
        gradients = torch.autograd.grad((out[0] * weight.to(device, dtype)).sum(), inputs)
        return [x.double().cpu() for x in (out[0].detach(), *gradients)]

    for got, wanted in zip(run("cuda", torch.bfloat16), run("cpu", torch.float64), strict=True):
        assert (got - wanted).norm() <= 0.02 * wanted.norm()


def test_log_probs_on_the_gpu_equal_those_on_the_cpu():
    examples = random_examples(n=12)
    model = tiny_model("llama", head_dim=16)
    batch = collate(examples, np.arange(12))
    with torch.no_grad():
        wanted = make_policy(model)[0](batch)
        policy, sentence = make_policy(tiny_model("llama", head_dim=16).bfloat16().cuda())
        got = policy(batch.to(torch.device("cuda"))).cpu()
    assert sentence.startswith("flat")
    assert (got - wanted).abs().mean() <= 0.1


def test_families_with_and_without_the_kernel():
    """Soft-caps, sinks and windows on the GPU: flat log-probs are those of the model's own forward, as the probe says."""
    for family in ("llama3", "mistral", "gemma2", "gpt_oss", "qwen3_moe"):
        _, sentence = make_policy(tiny_model(family).bfloat16().cuda())
        assert sentence.startswith("flat"), (family, sentence)
