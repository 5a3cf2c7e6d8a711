"""Every adapter with every objective: what is trained, what is saved, and what is merged. Whole by `make test-matrix`, pairwise else."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from builders import byte_tokenizer, tiny_model
from tunesmith import registry
from tunesmith.data import records
from tunesmith.model.loading import load_model, resolve
from tunesmith.model.quantize import dequantized, is_quantized
from tunesmith.training.api import train
from tunesmith.training.stages import Training

ADAPTERS = registry.names("model.adapters")
OBJECTIVES = [  # of models that write; test_reward_runs.py has those that score
    name
    for name in registry.names("training.objectives")
    if getattr(registry.load("training.objectives", name), "model", None) != "reward"
]
STEPS = 20
OPTIONS = {  # where the defaults do not fit a model of width 32
    "adalora": {"init_r": 6, "target_r": 3},
}
MODEL = {"loftq": {"quantize": "nf4"}, "trainable_tokens": {"new_tokens": ["<said>"]}}
PROMISED = {  # what the names of trained parameters hold; of adapters not here, none of the model's own
    "full": "",
    "freeze": r".layers.",
    "layernorm": "ln_tuning_layers",
    "ia3": "ia3_l",
    "trainable_tokens": "",
} | dict.fromkeys(["lora", "lora+", "rslora", "dora", "pissa", "loftq", "adalora"], "lora_")
WHOLE = ("full", "freeze")  # their result is a model
OURS = ("bottleneck", "trainable_tokens")  # not in PEFT, or more than PEFT loads alone
QUANTISED = ("loftq",)
EXACT = 1e-9  # of the largest logit; float64 leaves 1e-15
# What is rounded on the way, of the largest logit: PiSSA's frozen rest of W has the model's dtype, which the untouched W and the saved
# A and B cannot give back; a quantised model computes in its dtype (in bf16: see `same_weights`); P-tuning's file holds in fp32 what
# its network makes.
ROUNDED = {
    ("pissa", "float32"): 1e-5,
    ("pissa", "bfloat16"): 3e-3,
    ("loftq", "float32"): 1e-5,
    ("p-tuning", "float32"): 2e-6,
    ("p-tuning", "bfloat16"): 2e-6,
}


PAIRS = [  # every adapter once and every objective with some, dtype and micro-batch crossed
    (adapter, OBJECTIVES[i % len(OBJECTIVES)], ("float32", "bfloat16")[(i // 2) % 2], (4096, 160)[i % 3 == 0])
    for i, adapter in enumerate(ADAPTERS)
]


@pytest.mark.parametrize(("adapter", "objective", "dtype", "microbatch"), PAIRS)
def test_pairwise(adapter, objective, dtype, microbatch, tiny_folder, tmp_path, monkeypatch):
    check(adapter, objective, dtype, microbatch, tiny_folder, tmp_path, monkeypatch)


@pytest.mark.matrix
@pytest.mark.parametrize("microbatch", [4096, 160])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_whole(adapter, objective, dtype, microbatch, tiny_folder, tmp_path, monkeypatch):
    check(adapter, objective, dtype, microbatch, tiny_folder, tmp_path, monkeypatch)


def write_rows(file: Path, objective: str) -> str:
    """Write 24 rows of the kind that the objective reads, eight with a long beginning in common (which is computed once)."""
    rng = np.random.default_rng(0)
    kind = registry.load("training.objectives", objective).reads[0]
    with file.open("w") as f:
        for i in range(24):
            said = " ".join(rng.choice(["red", "blue", "cat", "dog", "sun", "moon"], 3).tolist())
            asked, answer = ("As every day before, say it backwards: " if i % 3 == 0 else "<said> ") + said, said[::-1]
            rows = {
                records.Text: {"text": f"{asked} {answer}"},
                records.Chat: {"instruction": asked, "output": answer},
                records.Preference: {"prompt": asked, "chosen": answer, "rejected": said},
                records.Verdict: {"prompt": asked, "completion": answer, "label": i % 2 == 0},
                records.Prompt: {"prompt": asked, "answer": answer},
            }
            f.write(json.dumps(rows[kind]) + "\n")
    return str(file)


def run(adapter, objective, dtype, microbatch, model, folder, monkeypatch):
    """Train 20 steps; return the losses, the policy at the end, and its parameters before (what is trained, all)."""
    before, begun, loops_made, losses = {}, {}, [], []

    def noted(self):
        loop = loops(self)
        loops_made.append(loop)
        before.update({n: (p.detach().clone(), p.requires_grad) for n, p in loop.policy.named_parameters()})
        begun.update({n: master.detach().clone() for n, master in loop.masters.masters.items()})
        return loop

    loops = Training._loop
    monkeypatch.setattr(Training, "_loop", noted)
    result = train(
        {
            "model": {"path": str(model), **MODEL.get(adapter, {})},
            "data": write_rows(folder / "rows.jsonl", objective),
            "validation": False,
            "objective": objective,
            "adapter": {"name": adapter, **OPTIONS.get(adapter, {})},
            "train": {
                "max_steps": STEPS,
                "batch_size": 8,
                "dtype": dtype,
                "microbatch_tokens": microbatch,
                "device": "cpu",
            },
            "output": str(folder / "run"),
        },
        listeners=[lambda e: losses.append(e["loss"]) if e["event"] == "step" else None],
    )
    masters = loops_made[
        0
    ].masters.masters  # bf16 copies near 1 stay where a comparison's rate moves them by less than a digit
    learnt = {n for n, master in masters.items() if not torch.equal(master.detach(), begun[n])}
    return losses, loops_made[0].policy.eval(), before, learnt, Path(result["result"])


def reloaded(adapter, dtype, model, result):
    """Return the result as plain PEFT (or transformers, where it is a model) loads it on the untouched base."""
    import peft
    from transformers import AutoModelForCausalLM

    if adapter in WHOLE:
        return AutoModelForCausalLM.from_pretrained(result, dtype=dtype).eval()
    if adapter in OURS:
        return load_model(resolve(str(result)), dtype=dtype).eval()
    extra = {}
    if adapter in QUANTISED:
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **extra)
    for layer in base.modules():  # bitsandbytes' own product for evaluation on a CPU rounds to bf16 whatever the dtype
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return peft.PeftModel.from_pretrained(base, result, autocast_adapter_dtype=False).eval()


def norm(self, x):
    """RMSNorm in the dtype of x: the one of transformers rounds to fp32 on the way."""
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


def logits(model, ids, wide=True):
    """Return the logits, computed in float64 (of a quantised model in its own dtype)."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        if wide:
            patch.setattr(LlamaRMSNorm, "forward", norm)
            model = copy.deepcopy(model).double()
        return model(input_ids=ids).logits.double()


def same_weights(ours, theirs):
    """Whether two quantised models have the same bits: in bf16 two orders of the same products differ in all digits there are."""
    found = dict(theirs.named_parameters())
    layers = dict(theirs.named_modules())
    return found.keys() == dict(ours.named_parameters()).keys() and all(
        [torch.equal(p, found[n]) for n, p in ours.named_parameters()]
        + [torch.equal(dequantized(m), dequantized(layers[n])) for n, m in ours.named_modules() if is_quantized(m)]
    )


def check(adapter, objective, dtype, microbatch, model, folder, monkeypatch):
    if adapter in QUANTISED:
        pytest.importorskip("bitsandbytes")
        # of whole blocks of 64, which its products on a CPU ask for
        model = folder / "wider"
        tiny_model(vocab_size=260, eos_token_id=256, hidden_size=64, intermediate_size=128).save_pretrained(model)
        byte_tokenizer().save_pretrained(model)
    losses, policy, before, learnt, result = run(adapter, objective, dtype, microbatch, model, folder, monkeypatch)
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < np.mean(losses[:5])

    moved = {n for n, p in policy.named_parameters() if not torch.equal(p.detach(), before[n][0])}
    if adapter == "trainable_tokens":  # its rows are written into the tables, whose others stay
        tables = {n: p for n, p in policy.named_parameters() if n in moved}
        assert len(tables) == 2
        assert all(torch.equal(p[:260], before[n][0][:260]) for n, p in tables.items())
        before, moved = {}, set()
    promised = {n for n, (_, trained) in before.items() if trained}
    assert moved <= promised
    assert all(PROMISED.get(adapter, "") in n for n in promised)
    still = (
        promised - moved - learnt
    )  # AdaLoRA may take all of a matrix's triplets away: its E is then what it began as
    masked = {n for n, p in policy.named_parameters() if n in still and ".lora_E." in n and not p.any()}
    assert len(still - masked) <= 0.1 * len(promised)  # an unreached row's may stay

    wide = adapter not in QUANTISED
    ids = torch.arange(97, 137)[None]
    with policy.plain_attention():
        wanted = logits(policy.model, ids, wide)
    loaded = reloaded(adapter, dtype, model, result)
    if not wide and dtype == "bfloat16":
        assert same_weights(policy.model, loaded)
    else:
        bound = ROUNDED.get((adapter, dtype), EXACT) * float(wanted.abs().max())
        assert float((logits(loaded, ids, wide) - wanted).abs().max()) <= bound

    if adapter not in WHOLE and getattr(registry.load("model.adapters", adapter), "MERGES", True):
        if dtype != "float32":  # the merged weights' own rounding is the dtype's matter
            loaded = loaded.float()
        with torch.no_grad():
            wanted = loaded(input_ids=ids).logits
            assert float((loaded.merge_and_unload()(input_ids=ids).logits - wanted).abs().max()) <= 1e-4
