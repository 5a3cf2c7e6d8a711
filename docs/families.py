"""Writes docs/families.md: how each family of models runs, by the probe, on tiny random models of each.

    python docs/families.py

The GPU's column is derived from what attention asks of its kernel; nothing here runs on one.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
import transformers

from builders import tiny_model
from tunesmith.model import attention
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.model.probe import flat_batch

PAGE = Path(__file__).with_name("families.md")
FAMILIES = {
    "llama3": "Llama 2, 3, SmolLM2, TinyLlama",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "phi3": "Phi-3, Phi-4",
    "phi": "Phi-1, Phi-2",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "opt": "OPT",
    "falcon": "Falcon 7B",
    "falcon_new": "Falcon 40B",
    "falcon_alibi": "Falcon RW",
    "bloom": "BLOOM",
    "stablelm": "StableLM",
    "cohere": "Cohere Command",
    "granite": "Granite 3",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3 mixtures",
    "gpt_oss": "gpt-oss",
}
WORDS = {"sliding_window": "windows", "softcap": "soft-caps", "s_aux": "sinks", "dropout": "dropout"}
TEXT = """# Families of models

Written by `docs/families.py` with {versions}; a test holds it to that.

Whether a model runs flat (rows end to end, nothing padded) or padded is no list in the code: when a model is loaded, a probe
compares flat log-probs with those of the model's own forward on each row alone, with prefix links, with every attention
window shortened so that rows are longer than it, and in training mode. What differs runs padded, and the run says so and why. This
table is what the probe said, on a CPU, of a tiny random model of each family with the family's own settings, its blocks fused
as they are in training. Parity of log-probs and of the gradients of all parameters with transformers' padded forward, unfused, is
tested for each, in either way of running (`tests/parity/test_families.py`).

The column for GPUs is derived, not measured: torch's varlen kernel has no soft-caps, sinks or dropout, and windows only where
its signature has `window_size`; it takes bf16 and fp16 on GPUs since Ampere, with heads of at most 256 numbers. Everything
else that runs flat does so by batched products over groups of segments, the CPU's way.

| Family | Such as | What attention is asked for | CPU | GPU (not measured) |
| --- | --- | --- | --- | --- |
{rows}

- Dropout is what the family's default config asks for in training; a config without it does not need it.
- Mixtures keep the routers' load-balancing loss where the config says `output_router_logits`, over the whole step. LoRA's
  `all-linear` reaches their experts.
- Rotary frequencies that change with length (`longrope` of Phi-3's long versions, `dynamic`) are for a whole call of the model: a
  micro-batch with rows on both sides of that length runs in two calls, one for each side: flat halves, or padded groups.
- A padded run computes the output layer at scored positions only, like a flat one; a model whose own code does more to
  its logits than a bias, a scale and a soft-cap gives them by its own forward.
"""


def page() -> str:
    """Return the page's text; every family is probed."""
    rows = []
    for family, such in FAMILIES.items():
        model = tiny_model(family).train()
        fuse(model)
        with recorded() as asked:
            policy, sentence = make_policy(model)
            policy.train()
            policy(flat_batch(torch.arange(9), (9,), (-1,)))
        why = sentence.partition("(")[2].rstrip(")")
        cpu = "flat" if policy.flat else f"padded: {why}"
        rows.append(f"| {family} | {such} | {', '.join(sorted(asked)) or '—'} | {cpu} | {_gpu(policy.flat, asked)} |")
    return TEXT.format(versions=versions(), rows="\n".join(rows))


def versions() -> str:
    return f"torch {torch.__version__.partition('+')[0]} and transformers {transformers.__version__}"


def _gpu(flat: bool, asked: set[str]) -> str:
    if not flat:
        return "padded"
    lacking = sorted(asked & {"soft-caps", "sinks", "dropout"})
    if lacking:
        return f"flat, by grouped products ({', '.join(lacking)})"
    return "flat, varlen kernel" + (" where it has windows" if "windows" in asked else "")


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Within it, what flat attention is asked for is added to the set."""
    asked: set[str] = set()
    real = attention.flat_attention

    def recording(*inputs, **keywords):
        given = {key for key, value in keywords.items() if value is not None and not (key == "dropout" and value == 0)}
        asked.update(word for key, word in WORDS.items() if key in given)
        return real(*inputs, **keywords)

    attention.flat_attention = recording
    try:
        yield asked
    finally:
        attention.flat_attention = real
        attention.register()


if __name__ == "__main__":
    PAGE.write_text(page())
