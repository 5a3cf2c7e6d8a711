"""Quantised layers hold the bits that bitsandbytes and torchao make, mean the numbers they mean, and never change."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import tiny_config, tiny_model
from tunesmith.errors import InputError
from tunesmith.model import quantize, quantized_layers
from tunesmith.model.loading import ModelSource, load_model
from tunesmith.model.quantize import Quantization, dequantized, is_quantized, stored
from tunesmith.model.quantized_layers import quantize_model, quantized

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install -e '.[quantize]')")

# QLoRA's NF4 as its appendix E prints it: quantiles of N(0, 1), scaled to [-1, 1], with an exact zero.
NF4 = torch.tensor(
    [
        *[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453],
        *[-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0],
        *[0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
        *[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    ]
)
FP4 = torch.tensor([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4])  # sign aside, by bit pattern: e2m1, over 12
FOUR = {"nf4": NF4, "fp4": torch.cat([FP4, -FP4])}
BY_NAME = ["nf4", "fp4", "int8", "torchao-int8"]


def made(weight, name, double=True, bias=None):
    """A layer with the weight quantised."""
    if name.startswith("torchao"):
        pytest.importorskip("torchao", reason="needs torchao (pip install -e '.[torchao]')")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return quantized(layer, weight, Quantization(name, double))


def test_nf4_by_hand():
    scales = torch.tensor([2.0, 0.5])  # the largest number of each block
    weight = torch.zeros(2, 64)
    weight[0, :16], weight[1, :16] = 2 * NF4, 0.5 * NF4.flip(0)
    layer = made(weight, "nf4", double=False)
    torch.testing.assert_close(stored(layer.weight)[1], scales, atol=0, rtol=0)
    codes = stored(layer.weight)[0].view(2, 32)[:, :8]  # two to a byte, the first in the upper half
    assert codes[0].tolist() == [16 * i + i + 1 for i in range(0, 16, 2)]
    assert codes[1].tolist() == [16 * (15 - i) + 14 - i for i in range(0, 16, 2)]
    torch.testing.assert_close(dequantized(layer), weight, atol=0, rtol=0)
    weight[0, 20], weight[0, 21] = (
        2 * 0.12,
        2 * 0.1203,
    )  # the middle of 0.0796 and 0.1609 is 0.12026: the nearer one is taken
    found = dequantized(made(weight, "nf4", double=False))[0, 20:22]
    torch.testing.assert_close(found, 2 * NF4[[8, 9]], atol=0, rtol=0)


def looked_up(weight, table):
    """What a 4-bit parameter means, number by number: its table's value times its block's scale."""
    state = weight.quant_state
    absmax = state.absmax
    if state.nested:  # 8 bits look up one of 256 values, times the scale of 256 blocks, plus the mean
        scales = state.state2.absmax.repeat_interleave(256)[: len(absmax)]
        absmax = state.state2.code[absmax.long()] * scales + state.offset
    codes = torch.stack([weight.data.view(-1) >> 4, weight.data.view(-1) & 15], 1).view(-1)[: state.shape.numel()]
    found = table[codes.long()] * absmax.repeat_interleave(64)[: state.shape.numel()]
    return found.view(state.shape).to(state.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("shape", [(64, 128), (48, 32), (32, 48), (7, 96), (5, 66), (3, 2), (8, 200)])
def test_four_bits_at_any_width(shape, name, double, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = made(weight, name, double)
    torch.testing.assert_close(dequantized(layer), looked_up(layer.weight, FOUR[name]), atol=1e-7, rtol=0)
    assert dequantized(layer).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BY_NAME)
def test_the_bits_are_the_librarys(name, dtype, monkeypatch):
    """In chunks as in one; torchao's scales in the weight's own dtype."""
    weight = torch.randn(70, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(quantized_layers, "CHUNK", 64 * 8)
    ours = made(weight, name).weight
    if name in FOUR:
        wanted = bnb.nn.Params4bit(weight.clone(), compress_statistics=True, quant_type=name).to("cpu")
        assert ours.quant_state.as_dict(packed=False).keys() == wanted.quant_state.as_dict(packed=False).keys()
        assert ours.quant_state == wanted.quant_state
    elif name == "int8":
        wanted = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        holder = nn.Linear(192, 70, bias=False)
        holder.weight = nn.Parameter(weight.clone(), requires_grad=False)
        quantize_(holder, Int8WeightOnlyConfig())
        wanted = holder.weight
        assert torch.equal(ours.dequantize(), wanted.dequantize())
    for mine, theirs in zip(stored(ours), stored(wanted), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_product_is_with_what_it_means_in_training_and_after(name):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(32, 48), torch.randn(32), torch.randn(2, 5, 48)
    layer = made(weight, name, bias=bias)
    full = dequantized(layer)
    assert 0 < (full - weight).abs().max() < (1.2 if name in FOUR else 0.05)
    before = [t.clone() for t in stored(layer.weight)]
    results = []
    for training in (True, False, True):
        layer.train(training)
        with torch.no_grad():
            results.append(layer(x))
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        dy = torch.randn_like(y)
        y.backward(dy)
        results.append(y.detach())
        torch.testing.assert_close(inputs.grad, dy @ full, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(r, results[0]) for r in results)
    torch.testing.assert_close(results[0], x @ full.t() + bias, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(t, b) for t, b in zip(stored(layer.weight), before, strict=True))
    assert torch.equal(copy.deepcopy(layer)(x), results[0])


@pytest.mark.parametrize("name", BY_NAME)
def test_nothing_is_kept_for_the_backward_pass_and_no_rows_will_do(name):
    layer, kept = made(torch.randn(32, 48), name), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(6, 48, requires_grad=True)).sum().backward()
    assert sum(kept) == 0
    assert layer(torch.randn(2, 0, 48)).shape == (2, 0, 32)


def saved(folder, family, dtype=torch.bfloat16, **changes):
    tiny_model(family, dtype, **changes).save_pretrained(folder, max_shard_size="20KB")
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_loading_gives_what_transformers_gives(family, name, tmp_path):
    """Layer for layer the same bits, and what is not quantised in the same dtype; from several files."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = saved(tmp_path / "model", family)
    ours = load_model(ModelSource(folder, None, Quantization(name)), "bfloat16")
    config = BitsAndBytesConfig.from_dict({**Quantization(name).describe(), "bnb_4bit_compute_dtype": "bfloat16"})
    wanted = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    theirs = dict(wanted.named_parameters())
    found = dict(ours.named_parameters())
    assert found.keys() == theirs.keys()
    for key, p in found.items():
        assert type(p).__name__ == type(theirs[key]).__name__, key
        assert not p.requires_grad
        for a, b in zip(stored(p), stored(theirs[key]), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), key
    assert any(is_quantized(m) for m in ours.modules())
    assert not is_quantized(ours.get_output_embeddings())
    assert ours.generation_config.eos_token_id == wanted.generation_config.eos_token_id


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("name", BY_NAME)
def test_bytes_are_known_before_loading(family, name, tmp_path):
    folder = saved(tmp_path / "model", family)
    if name.startswith("torchao"):
        pytest.importorskip("torchao", reason="needs torchao (pip install -e '.[torchao]')")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_config(family))
    numbers = sum(p.numel() for p in empty.parameters())
    share = quantize_model(empty, Quantization(name))
    loaded = load_model(ModelSource(folder, None, Quantization(name)), "bfloat16")
    held = quantize.weight_bytes(empty.parameters(), 2)
    assert held == sum(t.nbytes for p in loaded.parameters() for t in stored(p))
    assert quantize.count(empty.parameters()) == quantize.count(loaded.parameters()) == numbers
    reached = sum(quantize.count([m.weight]) for m in loaded.modules() if is_quantized(m))
    assert share == pytest.approx(reached / numbers)


def test_bits_of_a_weight():
    """4 bits, 8 for each 64's scale and 32 for the scale of 256 of those: 4.127, as the paper says (and 4 bytes for the mean)."""
    with torch.device("meta"):
        layer = nn.Linear(4096, 4096, bias=False)
    bits = {
        d: 8 * quantize.weight_bytes([quantized(layer, layer.weight, Quantization("nf4", d)).weight], 2)
        for d in (True, False)
    }
    assert bits[True] / 4096**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
    assert bits[False] / 4096**2 == 4.5


def test_description_is_transformers_own(tmp_path):
    from transformers import BitsAndBytesConfig

    for how in (Quantization("nf4"), Quantization("fp4", False), Quantization("int8"), Quantization("torchao-int8")):
        assert quantize.described(how.describe()) == how
    config = BitsAndBytesConfig.from_dict(Quantization("nf4", True).describe())
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)


def test_files_that_are_quantised_already(tmp_path):
    """Those of bitsandbytes load and train as they are; of others one sentence tells."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    folder = saved(tmp_path / "model", "llama", torch.float32, hidden_size=64, intermediate_size=64)
    config = BitsAndBytesConfig.from_dict(Quantization("nf4").describe())
    held = str(tmp_path / "held")
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).save_pretrained(held)
    ours = load_model(ModelSource(folder, None, Quantization("nf4")), "float32")
    again = load_model(ModelSource(held), "float32")
    ids = torch.randint(0, 97, (1, 20))
    for training in (True, False):
        assert torch.equal(ours.train(training)(ids).logits, again.train(training)(ids).logits)
    found = AutoConfig.from_pretrained(held)
    quantize.check(None, found, held, "cpu")
    with pytest.raises(InputError, match=r"stored quantised with bitsandbytes already; leave model\.quantize out"):
        quantize.check(Quantization("int8"), found, held, "cpu")
    found.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(
        InputError, match="stored quantised with gptq, which is not trained here; take the model it was made"
    ):
        quantize.check(None, found, held, "cpu")


def test_what_cannot_be_is_said(monkeypatch):
    config = tiny_config("llama")
    with pytest.raises(InputError, match="torchao-int4 does not train"):
        quantize.check(Quantization("torchao-int4"), config, "x", "cpu")
    with pytest.raises(InputError, match="no kernels for mps"):
        quantize.check(Quantization("nf4"), config, "x", "mps")
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nf4 needs bitsandbytes: pip install 'tunesmith\[quantize\]'"):
        quantize.check(Quantization("nf4"), config, "x", "cpu")
    with pytest.raises(InputError, match=r"torchao-int8 needs torchao: pip install 'tunesmith\[torchao\]'"):
        quantize.check(Quantization("torchao-int8"), config, "x", "cpu")
    quantize.check(None, config, "x", "cpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["nf4", "int8", "torchao-int8"])
def test_peak_memory_at_load(name, tmp_path):
    """Below 1.2 of what it holds in the end, for 144 million parameters in several files; transformers' own way takes 2.7 to 4.7."""
    if name.startswith("torchao"):
        pytest.importorskip("torchao", reason="needs torchao (pip install -e '.[torchao]')")
    from transformers import AutoModelForCausalLM

    wide = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 2000}
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama", **wide), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "large", max_shard_size="30MB")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 3
    small = saved(tmp_path / "small", "llama")
    program = Path(__file__).with_name("quantized_peak.py")
    command = [sys.executable, str(program), small, str(tmp_path / "large"), name]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak, size = map(int, out.split())
    assert peak < 1.2 * size
