"""Trains three steps in a process of its own; prints the bytes they took at most, and those that training/memory.py foresees."""

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import torch

from builders import random_examples, tiny_model
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.adapters import lora
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.training import memory
from tunesmith.training.guard import Guard
from tunesmith.training.infer import Shape
from tunesmith.training.masters import Masters
from tunesmith.training.objective import Objective, Totals
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers import per_parameter
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.step import Stepper

SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
LENGTH = 200


def resident(field):
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def train(sizes, adapter, how, rows, within):
    """Make three steps; return the policy and the tokens of a step."""
    model = tiny_model("llama", torch.bfloat16, **sizes)
    model = lora.attach(model, r=16).model if adapter == "lora" else model.requires_grad_(True)
    fuse(model)
    policy, _ = make_policy(model)
    checkpoint_activations(model, how)
    masters = Masters(policy.train())

    def make(own):
        return adamw(own, learning_rate=1e-4)

    optimizer = per_parameter(make, masters.masters) if within else make(masters.masters)
    examples = random_examples(n=rows, low=LENGTH, high=LENGTH + 1)
    tokens, clip = int(examples.lengths.sum()), False if within else 1.0
    guard = Guard(torch.device("cpu"), False)
    stepper = Stepper(policy, Objective(sft.loss), masters, optimizer, guard, examples, tokens, clip, print)
    for step in (1, 2, 3):
        stepper.step(
            np.arange(rows), stepper.batches(np.arange(rows)), Totals(int(examples.scored.sum()), rows, 1), 1e-4, step
        )
    return policy, tokens


def foreseen(policy, adapter, how, tokens, within):
    """Return the bytes at the peak of a step of one micro-batch, in which gradients come as activations go."""
    config = policy.transformer.config
    count = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    attention = 2 * config.head_dim * (config.num_attention_heads + config.num_key_value_heads)
    shape = Shape(
        count, config.hidden_size, config.intermediate_size, config.num_hidden_layers, None, config.vocab_size,
        trained=trained, heads=config.num_attention_heads, attention=attention, trains_output=adapter == "full",
    )  # fmt: skip
    held = memory.state(shape, 2, "cpu", tokens, within)
    activations = tokens * memory.activation_bytes(shape, 2, "cpu", memory.Choice(how), LENGTH)
    return held.total + activations - min(activations, held.gradients)


if __name__ == "__main__":
    torch.set_num_threads(1)
    adapter, how, rows, within = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "within"
    # what is imported on the way, and the products that oneDNN compiles for these sizes
    train({**SIZES, "num_hidden_layers": 1, "vocab_size": 300}, adapter, how, rows, within)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    policy, tokens = train({**SIZES, "num_hidden_layers": 12, "vocab_size": 32000}, adapter, how, rows, within)
    print(resident("VmHWM") - before, round(foreseen(policy, adapter, how, tokens, within)))
