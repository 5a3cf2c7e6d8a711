"""A small loop for tests, and what to ask of it. (Not in builders.py: only this folder's tests need it.)"""

import json

import numpy as np
import torch

from builders import random_examples, tiny_model
from tunesmith.model.policy import make_policy
from tunesmith.run import open_run
from tunesmith.training.loop import Loop
from tunesmith.training.objective import Objective
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.plan import Plan

EXAMPLES = random_examples(n=40, low=3, high=20)


def make_loop(
    run,
    dtype=torch.float32,
    loss=sft.loss,
    evaluate=dict,
    learning_rate=1e-2,
    dropout=0.0,
    make_optimizer=adamw,
    device="cpu",
    companions=(),
    **changes,
):
    """Return a loop over 40 random rows, eight to a step, with a tiny Llama, trained whole or (dropout) with LoRA."""
    plan = Plan(
        **{
            "steps": 10,
            "tokens_per_step": None,
            "batch_size": 8,
            "microbatch_tokens": 10_000,
            "learning_rate": learning_rate,
            "schedule": "cosine",
            "warmup": 2,
            "clip_norm": 1.0,
            "seed": 0,
            "evaluate_every": 100,
            "checkpoint_every": 100,
            "keep_last": 2,
            "early_stopping": None,
            **changes,
        }
    )
    sizes = {"head_dim": 16} if device == "cuda" else {}  # the least that its kernel takes
    model = tiny_model("llama", dtype, **sizes)
    if dropout:
        from tunesmith.model.adapters.lora import attach

        torch.manual_seed(5)
        model = attach(model, r=4, dropout=dropout).model
    policy, _ = make_policy(model.to(device))
    optimizer = lambda masters: make_optimizer(masters, learning_rate=learning_rate, weight_decay=0.1)  # noqa: E731
    loop = Loop(
        run,
        policy,
        Objective(loss),
        EXAMPLES,
        lambda _: np.arange(len(EXAMPLES)),
        plan,
        optimizer,
        evaluate,
        "data",
        companions=companions,
    )
    loop.begin_companions()
    return loop


def unfused(masters, **arguments):
    """AdamW without the fused step, as on a device that has none."""
    optimizer = adamw(masters, **arguments)
    optimizer.defaults["fused"] = False
    for group in optimizer.param_groups:
        group["fused"] = False
    return optimizer


def weights(loop):
    return {n: p.detach().clone() for n, p in loop.policy.named_parameters() if p.requires_grad}


def trained(tmp_path, name, **changes):
    """Train in a run's folder of that name and return the weights."""
    with open_run(tmp_path / name) as run:
        loop = make_loop(run, **changes)
        loop.train()
    return weights(loop)


def events(folder, kind):
    """Return a run's events of a kind."""
    return [e for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines()) if e["event"] == kind]


def losses(folder):
    return np.array([e["loss"] for e in events(folder, "step")])
