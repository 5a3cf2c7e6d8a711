"""AdaLoRA: the ranks, importances and losses of PEFT's own loop; schedule, skipped steps, resumption, and what is saved."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from builders import random_examples, tiny_model
from tunesmith.errors import InputError
from tunesmith.model.adapters import adalora
from tunesmith.model.policy import make_policy
from tunesmith.run import open_run
from tunesmith.training import checkpoint
from tunesmith.training.batch import microbatches
from tunesmith.training.loop import Loop
from tunesmith.training.objective import Objective
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers import adamw
from tunesmith.training.plan import Plan, plan_steps
from tunesmith.training.schedules import factor

EXAMPLES = random_examples(n=40, low=3, high=20)
STEPS, RATE, CLIP = 12, 2e-2, 1.0
OPTIONS = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2}
PREFIX = "base_model.model."


def attached(dtype=torch.float32, **changes):
    torch.manual_seed(3)
    return adalora.attach(tiny_model(dtype=dtype), **{**OPTIONS, **changes})


def make_loop(run, made, loss=sft.loss, **changes):
    plan = Plan(
        **{
            "steps": STEPS, "tokens_per_step": None, "batch_size": 8, "microbatch_tokens": 40, "learning_rate": RATE,
            "schedule": "cosine", "warmup": 2, "clip_norm": CLIP, "seed": 0, "evaluate_every": 100, "checkpoint_every": 100,
            "keep_last": 20, "early_stopping": None, **changes,
        }
    )  # fmt: skip
    policy, _ = make_policy(made.model)
    make = lambda masters: adamw.make(masters, learning_rate=RATE)  # noqa: E731
    rows = lambda _: np.arange(len(EXAMPLES))  # noqa: E731
    loop = Loop(run, policy, Objective(loss), EXAMPLES, rows, plan, make, dict, "data", companions=[made.companion])
    loop.begin_companions()
    return loop


class Recording(list):
    """A run's events."""

    def __call__(self, event):
        self.append(event)

    def facts(self, key):
        return [(e["step"], e[key]) for e in self if e["event"] == "step" and key in e]


def trained(folder, made, **changes):
    events = Recording()
    with open_run(folder, (events,)) as run:
        loop = make_loop(run, made, **changes)
        loop.train()
    return loop, events


def by_hand():
    """PEFT's own AdaLoRA training, as its documentation has it; returns losses, importances after every step, masks and the model."""
    model = attached(torch.float64).model
    config = model.peft_config["default"]
    config.total_step, config.tinit, config.tfinal, config.deltaT = STEPS, 2, 3, 2
    policy, _ = make_policy(model)
    policy.train()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    order = plan_steps(EXAMPLES.lengths, lambda _: np.arange(len(EXAMPLES)), 0, None, 8, None)
    losses, importances, patterns = [], [], []
    for step, (_, rows) in zip(range(1, STEPS + 1), order, strict=False):
        batches = list(microbatches(EXAMPLES, rows, 10_000, True, 1))
        scored = sum(len(b.target_ids) for b in batches)
        loss = sum(sft.loss(policy(b), b.weights) for b in batches) / scored
        terms = [
            torch.norm((p @ p.T if "lora_A" in n else p.T @ p) - torch.eye(4, dtype=p.dtype))
            for n, p in model.base_model.model.named_parameters()
            if ("lora_A" in n or "lora_B" in n) and "default" in n
        ]
        optimizer.zero_grad()
        (loss + 0.5 * sum(terms) / len(terms)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * factor("cosine", step - 1, STEPS, 2)
        optimizer.step()
        model.base_model.update_and_allocate(step)
        losses.append(loss.item())
        importances.append({n: v.clone() for n, v in model.base_model.rankallocator.exp_avg_ipt.items()})
        patterns.append(dict(config.rank_pattern or {}))
    return losses, importances, patterns, model


def test_it_is_peft_s_own_training(tmp_path, monkeypatch):
    """Over 12 steps in several micro-batches: losses, importances of every weight, every rank and the last weights."""
    losses, importances, patterns, model = by_hand()
    made = attached(torch.float64)
    seen, masks = [], []
    after = made.companion.after_step

    def noted(step, rate, skipped):
        facts = after(step, rate, skipped)
        seen.append({n: v.clone() for n, v in made.companion.allocator.exp_avg_ipt.items()})
        masks.append(dict(made.companion.config.rank_pattern or {}))
        return facts

    monkeypatch.setattr(made.companion, "after_step", noted)
    loop, events = trained(tmp_path, made)
    assert np.allclose([e["loss"] for e in events if e["event"] == "step"], losses, atol=1e-6)
    assert masks == patterns
    assert sum(map(sum, masks[-1].values())) == 2 * 14
    assert len({sum(kept) for kept in masks[-1].values()}) > 1  # ranks did move apart
    for ours, wanted in zip(seen, importances, strict=True):
        assert ours.keys() == wanted.keys()
        assert all(torch.allclose(ours[n], wanted[n], rtol=1e-4, atol=1e-9) for n in wanted)
    found = dict(loop.policy.model.named_parameters())
    assert all(torch.allclose(found[n], p, atol=1e-6) for n, p in model.named_parameters())


def test_the_budget_falls_and_the_ranks_are_told(tmp_path):
    """56 triplets until step 2, then 28 + 28 (1 - (t - 2) / 7)^3 on every second step, 28 from step 9 on (the paper's eq. 12)."""
    _, events = trained(tmp_path, attached())
    budget = dict(events.facts("rank_budget"))
    assert [budget[t] for t in (1, 2, 9, 12)] == [56, 56, 28, 28]
    assert budget[4] == int(28 + 28 * (5 / 7) ** 3)
    told = dict(events.facts("ranks"))
    assert set(told) <= {4, 6, 8, 9}
    assert sum(told[4].values()) == budget[4]
    assert "model.layers.0.self_attn.q_proj" in told[4]
    (said,) = [e["message"] for e in events if e["event"] == "notice" and "ranks" in e["message"]]
    assert said == "AdaLoRA: 56 ranks until step 2, 28 from step 9, allocated every 2 steps"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [STEPS, 7])
def test_plain_peft_loads_what_is_saved(tmp_path, dtype, steps):
    """After the last step with its final ranks; between two allocations (step 7) whole, for masked triplets have moved since."""
    made = attached(dtype)
    companion = made.companion
    with open_run(tmp_path / "run") as run:
        loop = make_loop(run, made)
        loop.plan = type(loop.plan)(**{**vars(loop.plan), "steps": steps})
        loop.train()
    model = loop.policy.model.eval()
    model.save_pretrained(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(tiny_model(dtype=dtype), tmp_path / "saved", autocast_adapter_dtype=False).eval()
    pattern = loaded.peft_config["default"].rank_pattern
    assert (pattern is None) == (steps == 7)
    if pattern:
        sizes = {n.split(".lora_A")[0]: len(p) for n, p in loaded.named_parameters() if "lora_A" in n}
        kept = companion.config.rank_pattern
        assert sizes == {PREFIX + n.split(".lora_E")[0]: sum(kept) for n, kept in kept.items()}
    ids = torch.arange(40)[None]
    with torch.no_grad(), loop.policy.plain_attention():
        wanted = loop.policy.model.double()(ids).logits
        assert torch.allclose(loaded.double()(ids).logits, wanted, atol=1e-8)
        merged = loaded.merge_and_unload()(ids).logits
    assert torch.allclose(merged, wanted, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_same_run(tmp_path, dtype):
    """Resumed after each third step: the same masters, importances and masks, bit for bit."""
    whole, _ = trained(tmp_path / "whole", attached(dtype), checkpoint_every=3)
    for step in (3, 6, 9):
        made = attached(dtype)
        with open_run(tmp_path / f"from-{step}") as run:
            loop = make_loop(run, made)
            loop.resume(tmp_path / "whole" / "checkpoints" / f"step-{step}")
            loop.train()
        assert all(torch.equal(m, whole.masters.masters[n]) for n, m in loop.masters.masters.items())
        before = whole.stepper.companions[0]
        assert made.companion.config.rank_pattern == before.config.rank_pattern
        assert made.companion.state()[0].keys() == before.state()[0].keys()


def test_the_best_state_is_saved_with_its_own_ranks(tmp_path):
    """Early stopping goes back to a step before the last allocation: the companion goes back with it."""
    values = iter([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9])
    made = attached()
    with open_run(tmp_path) as run:
        loop = make_loop(run, made, evaluate_every=2, early_stopping=3)
        loop.evaluate = lambda: {"validation_loss": {"value": next(values)}}
        loop.train()
    assert loop.progress.best_step == 4
    pattern = made.companion.config.rank_pattern
    assert sum(map(sum, pattern.values())) == int(28 + 28 * (5 / 7) ** 3)
    assert not made.companion.final


def test_skipped_steps_change_nothing_and_the_last_allocation_is_made_up_for(tmp_path, monkeypatch):
    """Steps 5, 8 and 9 (the last allocation) have no loss that is a number: nothing changes in them; step 10 makes the allocation."""
    made, calls = attached(), []
    state = lambda: {n: v.clone() for n, v in made.companion.state()[0].items()}  # noqa: E731
    after = made.companion.after_step

    def noted(step, rate, skipped):
        before, weights = state(), {n: m.clone() for n, m in made.companion.masters.items()}
        facts = after(step, rate, skipped)
        if skipped.item():
            assert facts == {}
            assert all(torch.equal(before[n], v) for n, v in state().items())
            assert all(torch.equal(weights[n], m) for n, m in made.companion.masters.items())
            calls.append(step)
        return facts

    monkeypatch.setattr(made.companion, "after_step", noted)
    count = iter(range(1, 1000))
    # one micro-batch a step
    loss = lambda logps, weights: sft.loss(logps, weights) * (float("nan") if next(count) in (5, 8, 9) else 1)  # noqa: E731
    _, events = trained(tmp_path, made, loss=loss, microbatch_tokens=10_000)
    assert calls == [5, 8, 9]
    assert made.companion.final
    assert sum(dict(events.facts("ranks"))[10].values()) == 28


def test_a_run_too_short_for_its_schedule_is_refused():
    made = attached()
    with pytest.raises(
        InputError, match=r"of the run's 6 steps, tinit 2 and tfinal 3 leave 1 to allocate ranks in, and 2 are needed"
    ):
        made.companion.check(6)
    made = attached(tinit=None, tfinal=None, deltaT=None)
    with pytest.raises(InputError, match="2 steps"):
        made.companion.check(2)
    made.companion.check(1000)
    config = made.companion.config
    assert (config.tinit, config.tfinal, config.deltaT) == (100, 500, 10)


def test_a_target_that_is_not_below_the_start_is_refused():
    with pytest.raises(InputError, match=r"adapter\.target_r 12 is not below adapter\.init_r 12"):
        adalora.attach(tiny_model(), target_r=12)


def test_checkpoints_hold_no_code(tmp_path):
    """The companion's state is tensors and JSON: a checkpoint is found whole, and its file holds the importances."""
    trained(tmp_path, attached(), checkpoint_every=6)
    path = tmp_path / "checkpoints" / "step-6"
    assert checkpoint.damage(path) is None
    from safetensors.torch import load_file

    (file,) = path.glob("companion-0*")
    assert {n.split("/")[0] for n in load_file(file)} == {"importance", "uncertainty"}
