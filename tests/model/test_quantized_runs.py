"""Runs on a quantised base: every adapter learns on it, resumes to the bit, and reloads in plain PEFT; evaluation measures that base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from builders import byte_tokenizer, tiny_model
from tunesmith.errors import InputError
from tunesmith.model import many
from tunesmith.model.inference import check
from tunesmith.model.loading import ModelSource, load_model, resolve
from tunesmith.model.quantize import Quantization, is_quantized

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install -e '.[quantize]')")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", hidden_size=64, intermediate_size=128, vocab_size=260, eos_token_id=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


SETTINGS = ("train.max_steps=8", "train.dtype=float32", "train.checkpoint_every=3", "train.tokens_per_step=512")


def train(base, rows, output, adapter, quantize, *more, **keywords):
    settings = [
        f"model.quantize={quantize}",
        "optimizer.learning_rate=1e-2",
        "validation.fraction=0.1",
        *SETTINGS,
        *more,
    ]
    given = {"model": base, "data": str(rows), "adapter": adapter, "output": str(output), "settings": settings}
    return tunesmith.train(**given, **keywords)


def events(run, kind):
    found = [json.loads(line) for line in (Path(run) / "events.jsonl").read_text().splitlines()]
    return [e for e in found if e["event"] == kind]


def in_peft(base, result, name):
    """The logits of the result in plain PEFT, on the base as transformers quantises it (None: in full), in training mode."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {} if name is None else {"quantization_config": BitsAndBytesConfig.from_dict(Quantization(name).describe())}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **how)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, result).train()(torch.arange(2, 32)[None]).logits[:, -30:]


def ours(result):
    with torch.no_grad():
        return load_model(resolve(str(result)), "float32").eval()(torch.arange(2, 32)[None]).logits[:, -30:]


WHICH = ["lora", "rslora", "dora", "lora+", "adalora", "ia3", "prefix", "prompt", "p-tuning", "layernorm", "bottleneck"]
PAIRS = [(adapter, ("nf4", "int8")[i % 2]) for i, adapter in enumerate(WHICH)]
PAIRS += [("lora", "int8"), ("dora", "int8"), ("loftq", "nf4"), ("lora", "torchao-int8")]


@pytest.mark.parametrize(("adapter", "name"), PAIRS)
def test_every_adapter_learns_and_reloads(adapter, name, base, rows_file, tmp_path):
    """In plain PEFT too, but for bottleneck adapters, which are not PEFT's, and torchao, whose product rounds elsewhere."""
    if name.startswith("torchao"):
        pytest.importorskip("torchao", reason="needs torchao (pip install -e '.[torchao]')")
    more = ["adapter.tokens=4"] if adapter in ("prefix", "prompt", "p-tuning") else []
    result = train(base, rows_file, tmp_path / "run", adapter, name, *more)
    losses = [e["loss"] for e in events(result["run"], "step")]
    assert losses[-1] < losses[0] - 0.02
    assert resolve(result["result"]).quantize == Quantization(name)
    assert resolve(result["run"]).quantize == Quantization(name)
    found = ours(result["result"])
    assert not torch.allclose(found, ours_base(base, name), atol=1e-3)
    if adapter != "bottleneck" and not name.startswith("torchao"):
        if (adapter, name) != ("dora", "int8"):  # PEFT 0.21 loses the scales of int8 layers under DoRA on a CPU
            torch.testing.assert_close(in_peft(base, result["result"], name), found, atol=1e-4, rtol=1e-4)
        assert torch.isfinite(in_peft(base, result["result"], None)).all()


def ours_base(base, name):
    with torch.no_grad():
        return (
            load_model(ModelSource(base, None, Quantization(name)), "float32")
            .eval()(torch.arange(2, 32)[None])
            .logits[:, -30:]
        )


def test_resumed_to_the_bit(base, rows_file, tmp_path):
    """Interrupted after step 5, with the checkpoint of step 3, and validated in between."""
    whole = train(base, rows_file, tmp_path / "whole", "lora", "nf4")

    def stop(event):
        if event["event"] == "step" and event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, rows_file, tmp_path / "broken", "lora", "nf4", listeners=[stop])
    train(base, rows_file, tmp_path / "broken", "lora", "nf4", resume=True)
    wanted = load_file(f"{whole['result']}/adapter_model.safetensors")
    found = load_file(tmp_path / "broken" / "result" / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], t) for k, t in wanted.items())


def test_what_is_measured_is_what_was_trained(base, rows_file, tmp_path):
    result = train(base, rows_file, tmp_path / "run", "lora", "nf4", "adapter.r=4")
    model = check(result["run"]).load()
    assert sum(is_quantized(m) for m in model.modules()) == 2 * 7 * 2  # seven a layer, as PEFT's layers show theirs
    measured = tunesmith.evaluate(result["run"], data=str(rows_file), metrics=["perplexity"])["metrics"]["perplexity"]
    copied = tmp_path / "elsewhere"
    Path(result["result"]).rename(copied)
    (copied / "quantization.json").unlink()
    in_full = tunesmith.evaluate(str(copied), data=str(rows_file), metrics=["perplexity"])["metrics"]["perplexity"]
    assert measured["value"] != pytest.approx(in_full["value"], rel=1e-4)


def test_how_the_base_is_held_can_be_said(base, rows_file, tmp_path):
    """For a base alone, and for an adapter in place of what it was trained on; a name is checked before the tokenizer is read."""
    found = {name: check(base, quantize=name).source.quantize for name in (None, "none", "nf4", "int8")}
    assert found == {None: None, "none": None, "nf4": Quantization("nf4"), "int8": Quantization("int8")}
    wanted = tunesmith.evaluate(base, data=str(rows_file), metrics=["perplexity"], quantize="none")["metrics"]
    assert tunesmith.evaluate(base, data=str(rows_file), metrics=["perplexity"])["metrics"] == wanted
    assert tunesmith.evaluate(base, data=str(rows_file), metrics=["perplexity"], quantize="nf4")["metrics"] != wanted
    result = train(
        base, rows_file, tmp_path / "run", "lora", "nf4", "model.double_quantization=false", "train.max_steps=1"
    )
    kept = Quantization("nf4", double=False)
    found = {name: check(result["run"], quantize=name).source.quantize for name in (None, "nf4", "fp4", "none")}
    assert found == {None: kept, "nf4": kept, "fp4": Quantization("fp4"), "none": None}
    full = train(base, rows_file, tmp_path / "full", "lora", "none", "train.max_steps=1")
    adapters = {"four": result["result"], "full": full["result"]}
    with pytest.raises(InputError, match=r"held in other ways \(nf4, not quantised\), .* say with quantize"):
        many.check_several(base, adapters)
    several = many.check_several(base, adapters, quantize="int8")
    assert {choice.source.quantize for choice in several.choices.values()} == {Quantization("int8")}
    model = several.load()
    assert sum(is_quantized(m) for m in model.modules()) == 2 * 7 * 2
    with pytest.raises(InputError, match=r'there is no quantisation "nf5"\. Did you mean "nf4"'):
        tunesmith.generate(base, prompt="Hello", quantize="nf5")
    with pytest.raises(InputError, match=r"^quantize torchao-int4 does not train"):
        check(base, quantize="torchao-int4")


def test_adapters_of_bases_held_in_other_ways_merge_for_the_base_in_full(base, rows_file, tmp_path):
    runs = [
        train(base, rows_file, tmp_path / f"on-{q}", "lora", q, "train.max_steps=1")["result"] for q in ("nf4", "none")
    ]
    merged = tunesmith.merge(runs, output=str(tmp_path / "merged"), data=str(rows_file), limit=4)
    assert any(
        "held in other ways (in full, nf4); the merged one is for the base in full" in n for n in merged["notices"]
    )
    assert resolve(merged["output"]).quantize is None
    again = tunesmith.evaluate(merged["output"], data=str(rows_file), limit=4, metrics=["perplexity"])["metrics"]
    measured = next(m for name, m in merged["metrics"].items() if name == "merged")
    assert again["perplexity"]["value"] == pytest.approx(measured["perplexity"]["value"], rel=1e-5)


def test_the_run_says_what_it_does(base, rows_file, tmp_path):
    """The default adapter is LoRA; continued, the base stays quantised as it was."""
    result = train(base, rows_file, tmp_path / "run", None, "nf4", "model.double_quantization=false")
    assert {e["key"]: e["value"] for e in events(result["run"], "inferred")}["adapter"] == {"name": "lora"}
    (said,) = [e["message"] for e in events(result["run"], "notice") if "the base in nf4" in e["message"]]
    # 2 x (2 x 64 x 64 + 2 x 32 x 64 + 3 x 64 x 128) of those, 2 x 260 x 64 of embeddings and output layer, and 5 norms of 64
    assert "69% of its weights; embeddings, output layer and norms stay in float32" in said
    (start,) = events(result["run"], "start")
    assert start["parameters"] == sum(p.numel() for p in tiny_parameters(base)) + start["trained_parameters"]
    again = tunesmith.train(
        model=result["run"], data=str(rows_file), output=str(tmp_path / "more"),
        settings=["optimizer.learning_rate=1e-2", *SETTINGS],
    )  # fmt: skip
    assert resolve(again["run"]).quantize == Quantization("nf4", double=False)


def tiny_parameters(base):
    return load_model(ModelSource(base), "float32").parameters()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["model.quantize=nf5"], 'model.quantize should be one of nf4, fp4, .* Did you mean "nf4"'),
        (
            ["model.quantize=nf4", "adapter.name=full"],
            "nf4 freezes the model's weights, and adapter full trains them; take adapter: lora",
        ),
        (
            ["model.quantize=int8", "adapter.name=freeze", "adapter.layers=1"],
            "adapter freeze trains them; take adapter: lora",
        ),
        (["model.quantize=nf4", "adapter.name=pissa"], "adapter pissa decomposes the weights, but .* is quantised"),
        (["model.quantize=torchao-int4"], "torchao-int4 does not train"),
        (
            ["model.quantize=int8", "model.double_quantization=true"],
            "double_quantization goes with model.quantize nf4 or fp4, not with int8",
        ),
        (["model.double_quantization=true"], "not with none"),
    ],
)
def test_refusals_before_any_weight_loads(settings, sentence, base, rows_file, tmp_path, monkeypatch):
    from tunesmith.model import loading

    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=sentence):
        tunesmith.train(model=base, data=str(rows_file), output=str(tmp_path / "run"), settings=settings)
    assert not (tmp_path / "run").exists()
