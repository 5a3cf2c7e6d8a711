"""The guard: a bad step changes nothing, is told with its rows, and enough of them in a row end the run at the last good state."""

import json
import math
import signal
from functools import partial

import numpy as np
import pytest
import torch
from loops import events, losses, make_loop, trained, unfused, weights

from tunesmith.config import parse
from tunesmith.errors import GuardStop, Interrupted
from tunesmith.run import open_run, state
from tunesmith.training import checkpoint, guard, infer
from tunesmith.training.guard import GOOD, GRADIENT, LOSS, OVERFLOW, SPIKE, Guard
from tunesmith.training.masters import state_tensors
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.plan import plan_steps

CPU = torch.device("cpu")


def bad_loss(at, loss):
    """Return the objective with `loss` in place of its own at the calls `at` (counted from 1), and the list of calls."""
    calls = []

    def objective(logps, weights):
        calls.append(1)
        return loss(logps, weights) if len(calls) in at else sft.loss(logps, weights)

    return objective


def nan_loss(logps, weights):
    return sft.loss(logps, weights) * float("nan")


def nan_gradient(logps, weights):
    """A finite loss: the derivative of a root at 0 is infinite, and 0 times that is no number."""
    return sft.loss(logps, weights) + 0 * (logps - logps).sum().sqrt()


def huge(logps, weights):
    return 100 * sft.loss(logps, weights)


def everything(loop):
    """Return a copy of all a step may change: masters, the model's own weights, moments, step counts."""
    parts = (loop.masters.masters, loop.masters.working, state_tensors(loop.optimizer, loop.masters.masters))
    return [part[name].detach().clone() for part in parts for name in sorted(part)]


def watched(loop):
    """Return the list, filled while the loop runs, of (before, after) of every step."""
    seen, step = [], loop.stepper.step

    def watch(*arguments):
        before = everything(loop)
        outcome = step(*arguments)
        seen.append((before, everything(loop)))
        return outcome

    loop.stepper.step = watch
    return seen


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make_optimizer", [adamw, unfused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("bad", "reason"), [(nan_loss, "loss"), (nan_gradient, "gradient")])
def test_a_bad_microbatch_skips_its_step(tmp_path, dtype, bad, reason, make_optimizer):
    """Of step 4's micro-batches the second is bad: nothing changes, bit by bit, and the run goes on to its end."""
    changes = {"dtype": dtype, "make_optimizer": make_optimizer, "microbatch_tokens": 30}
    with open_run(tmp_path) as run:
        loop = make_loop(run, **changes)
        before = sum(len(loop.stepper.batches(rows)) for rows in rows_of_steps(loop)[:3])
        loop.stepper.objective.function = bad_loss({before + 2}, bad)
        seen = watched(loop)
        progress = loop.train()
    assert [same(*pair) for pair in seen] == [number == 4 for number in range(1, 11)]
    assert all(torch.isfinite(t).all() for t in seen[-1][1])
    assert {int(t) for n, t in state_tensors(loop.optimizer, loop.masters.masters).items() if n.endswith("step")} == {9}
    assert (progress.step, progress.skipped, progress.bad_steps) == (10, 1, 0)
    (event,) = events(tmp_path, "skipped")
    rows = [f"random, row {r + 1}" for r in rows_of_steps(loop)[3]]
    assert event["step"] == 4
    assert event["rows"] == rows[:3]
    assert event["more_rows"] == len(rows) - 3
    assert event["message"] == (
        f"step 4 changed nothing, because its {reason} is no finite number ({'; '.join(rows[:3])}; and {len(rows) - 3} more)"
    )
    told = events(tmp_path, "step")[3]
    assert (told["loss"] is None) == (reason == "loss")
    assert told["grad_norm"] is None


def rows_of_steps(loop):
    steps = plan_steps(loop.examples.lengths, loop.rows, 0, None, 8)
    return [next(steps)[1] for _ in range(10)]


def test_k_in_a_row_stop_the_run_at_the_state_before_them(tmp_path):
    """Steps 4 to 6 are bad, three are too many: exit, with step 3's weights saved; resumed, the run ends."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=bad_loss({4, 5, 6}, nan_loss), max_bad_steps=3)
        seen = watched(loop)
        with pytest.raises(GuardStop) as stop:
            loop.train()
    said = str(stop.value)
    assert said.startswith(
        "steps 4 to 6 changed nothing at learning rate 0.01, the last because its loss is no finite number (random, row "
    )
    assert said.endswith(
        "; what was learnt before is kept as checkpoints/step-6; look at these rows, or begin a new run with a lower "
        "optimizer.learning_rate."
    )
    path, _ = checkpoint.newest_whole(tmp_path / "checkpoints")
    assert path.name == "step-6"
    with open_run(tmp_path) as run:
        loop = make_loop(run, max_bad_steps=3)
        loop.resume(path)
        assert same(everything(loop), seen[2][1])
        progress = loop.train()
    assert (progress.step, progress.skipped) == (10, 3)
    assert len(losses(tmp_path)) == 10


def test_two_bad_steps_then_a_good_one_go_on(tmp_path):
    with open_run(tmp_path) as run:
        progress = make_loop(run, loss=bad_loss({2, 3, 5, 6, 8}, nan_loss), max_bad_steps=3).train()
    assert (progress.step, progress.skipped) == (10, 5)


def test_bad_steps_that_are_read_late_end_the_run_though_good_ones_followed(tmp_path):
    """Steps 4 to 6 are bad and 7 to 10 are good, on a device whose losses are read at step 10."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=bad_loss({4, 5, 6}, nan_loss), max_bad_steps=3, steps=20)
        loop.device = torch.device("meta")
        with pytest.raises(GuardStop, match=r"steps 4 to 6 changed nothing .* is kept as checkpoints/step-10"):
            loop.train()
    assert len(losses(tmp_path)) == 10


# -- spikes


def judged(numbers, scaled=False):
    rule = Guard(CPU, scaled)
    return [int(rule.judge(torch.tensor(loss), torch.tensor(norm))) for loss, norm in numbers], rule


@pytest.mark.parametrize("place", [0, 1])
def test_a_spike_is_beyond_six_deviations_of_the_logarithm(place):
    """64 values of alternately e^1.9 and e^2.1: mean 2, deviation 0.1 by hand, but less than a doubling never is a spike."""
    alternating = [(math.exp(1.9 + 0.2 * (i % 2)),) * 2 for i in range(64)]
    for wide, limit in ((0.1, math.log(2)), (0.2, 1.2)):
        steps = [(math.exp(2 - wide + 2 * wide * (i % 2)),) * 2 for i in range(64)]
        for beyond, verdict in ((-0.01, GOOD), (0.01, SPIKE)):
            last = [math.exp(2.0)] * 2
            last[place] = math.exp(2 + limit + beyond)
            assert judged([*steps, last])[0] == [GOOD] * 64 + [verdict]
    assert judged([*alternating[:63], (1e3, 1e3)])[0] == [GOOD] * 64  # the rule holds from 64 steps on


def test_the_window_holds_the_last_128_finite_steps():
    """What is no number stays out of it; 128 large values later the small ones before them are forgotten."""
    nan = float("nan")
    verdicts, rule = judged([(1.0, 1.0)] * 64 + [(nan, 1.0), (1.0, math.inf), (nan, nan)] + [(1.0, 1.0)])
    assert verdicts == [GOOD] * 64 + [LOSS, GRADIENT, LOSS, GOOD]
    assert int(rule.seen) == 65
    assert rule.window[:, :65].tolist() == [[0.0] * 65] * 2
    _, rule = judged([(1.0, 1.0)] * 64 + [(50.0, 50.0)] * 128)
    assert rule.window[0].exp().tolist() == pytest.approx([50.0] * 128)


@pytest.mark.parametrize(("before", "skipped"), [(64, 2), (128, 4)])
def test_a_lasting_change_is_taken_as_such(before, skipped):
    """m of n values are d above the others: mean + 6 deviations lies d (m/n + 6 sqrt(m/n (1 - m/n))) above them, beyond d from
    m = 2 of n = 66 on (1.06 d; 1 of 65: 0.77 d), and in a full window from m = 4 of 128 on (1.08 d; 3 of 128: 0.93 d).
    """
    verdicts, _ = judged([(1.0, 1.0)] * before + [(50.0, 50.0)] * 20)
    assert verdicts == [GOOD] * before + [SPIKE] * skipped + [GOOD] * (20 - skipped)


def test_no_spike_is_told_of_losses_that_have_no_logarithm():
    """Losses of 0 and below, which hinge and robust have, neither are spikes nor make one of the first that is above 0; the norm's are."""
    below = [(-0.1 * (i % 3), 1.0) for i in range(200)]
    assert judged([*below, (0.5, 1.0), (-1.0, 1.0), (-1.0, 50.0)])[0] == [GOOD] * 202 + [SPIKE]
    known = [(1.0, 1.0), (0.0, 1.0)] * 64
    assert judged([*known, (1.9, 1.0), (50.0, 1.0)])[0] == [GOOD] * 129 + [SPIKE]


def test_a_spike_skips_its_step(tmp_path):
    """A hundredfold loss at step 70 of a run: nothing changes; the same before step 64 passes, clipped."""
    for at, skipped in ((70, [70]), (40, [])):
        folder = tmp_path / str(at)
        with open_run(folder) as run:
            loop = make_loop(run, loss=bad_loss({at}, huge), steps=75, learning_rate=1e-3)
            seen = watched(loop)
            loop.train()
        assert [number for number, pair in enumerate(seen, 1) if same(*pair)] == skipped
        assert [e["step"] for e in events(folder, "skipped")] == skipped
    assert "is a spike" in events(tmp_path / "70", "skipped")[0]["message"]


# -- divergence


def test_bounds_by_hand():
    assert guard.ceiling(first=2.0, uniform=10.0) == 15.0
    assert guard.ceiling(first=12.0, uniform=10.0) == 18.0
    assert guard.largest(norm=3.0, count=100) == 300.0
    assert guard.largest(norm=0.0, count=10_000) == 100.0  # 100 x 0.01 x 100


def test_a_diverged_run_keeps_no_state_of_its_divergence(tmp_path):
    """From step 6 on the loss is tenfold: the state it is of (step 5's) and those after it are not kept, that of step 4 is."""
    tenfold = lambda logps, w: 10 * sft.loss(logps, w)  # noqa: E731
    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=bad_loss(range(6, 99), tenfold), checkpoint_every=1, max_bad_steps=3, keep_last=9)
        with pytest.raises(
            GuardStop, match=r"training diverged at learning rate 0.01: in steps 6 to 8 the loss is above"
        ) as e:
            loop.train()
    assert (
        "the last good state is kept as checkpoints/step-4; begin a new run with a lower optimizer.learning_rate."
        in str(e.value)
    )
    assert [p.name for p in checkpoint.listed(tmp_path / "checkpoints")] == [f"step-{n}" for n in range(5)]


def tenfold(logps, w):
    return 10 * sft.loss(logps, w)


def test_a_run_whose_last_steps_diverge_is_not_done(tmp_path):
    """Too few for the rule of so many in a row: the run has no result all the same, and the last good state is kept."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=bad_loss({9, 10}, tenfold), checkpoint_every=1)
        with pytest.raises(GuardStop, match=r"in steps 9 to 10 the loss is above .* is kept as checkpoints/step-7"):
            loop.train()


def test_a_signal_while_the_loss_is_beyond_bounds_says_that_nothing_is_written(tmp_path):
    def loss(logps, w):
        if loop.progress.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return (tenfold if loop.progress.step == 3 else sft.loss)(logps, w)

    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=loss, checkpoint_every=2)
        with pytest.raises(Interrupted) as stop:
            loop.train()
    assert stop.value.number == signal.SIGTERM
    assert str(stop.value) == (
        "interrupted by SIGTERM; step 4 is not saved, for its loss is beyond bounds; the checkpoints before are kept"
    )
    assert checkpoint.newest_whole(tmp_path / "checkpoints")[0].name == "step-2"


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    with open_run(tmp_path) as run:
        loop = make_loop(run, checkpoint_every=2)
        step = loop.stepper.step

        def broken(*arguments):
            outcome = step(*arguments)
            if loop.progress.step == 3:
                next(iter(loop.masters.masters.values())).data[0] = float("nan")
            return outcome

        loop.stepper.step = broken
        with pytest.raises(GuardStop, match="at step 4 the trained weights' norm is nan"):
            loop.train()
    assert [p.name for p in checkpoint.listed(tmp_path / "checkpoints")] == ["step-0", "step-2"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("model", ["tiny", "starter"])
def test_a_learning_rate_of_a_million_ends_with_3(
    tunesmith_cli, tiny_folder, rows_file, tmp_path, model, adapter, dtype
):
    """Losses may stay finite, even sink (an overflow in a norm gives the uniform distribution): the weights tell."""
    settings = [f"train.dtype={dtype}", "optimizer.learning_rate=1e6", "train.max_steps=12", "train.checkpoint_every=1"]
    arguments = [
        "train",
        "--model",
        tiny_folder if model == "tiny" else model,
        "--data",
        rows_file,
        "--adapter",
        adapter,
    ]
    code, out, err = tunesmith_cli(
        *arguments, "--output", tmp_path / "run", *(x for s in settings for x in ("--set", s))
    )
    assert (code, out) == (3, "")
    said = err.strip().splitlines()[-1]
    assert said.startswith("tunesmith: training diverged at learning rate 1e+06: ")
    assert (
        "the last good state is kept as checkpoints/step-0; begin a new run with a lower optimizer.learning_rate."
        in said
    )
    assert state(tmp_path / "run") == "stopped"
    path, notices = checkpoint.newest_whole(tmp_path / "run" / "checkpoints")
    assert (path.name, notices) == ("step-0", [])
    kept = checkpoint.load(path)[0]["trained"]
    assert max(float(t.abs().max()) for t in kept.values()) < 100
    assert json.loads((path / "state.json").read_text())["progress"]["metrics"]["validation_loss"]["value"] < 30


# -- float16


def test_the_scale_halves_and_doubles():
    """An overflow halves it, 2,000 clean steps double it; at 1 what overflows is no fault of the scale."""
    _, rule = judged([(1.0, math.inf)], scaled=True)
    assert rule.scale == 2.0**15
    for _ in range(1999):
        rule.judge(torch.tensor(1.0), torch.tensor(1.0))
    assert rule.scale == 2.0**15
    rule.judge(torch.tensor(1.0), torch.tensor(1.0))
    assert rule.scale == 2.0**16
    verdicts, rule = judged([(1.0, math.inf)] * 18 + [(float("nan"), 1.0)], scaled=True)
    assert verdicts == [OVERFLOW] * 16 + [GRADIENT] * 2 + [LOSS]
    assert rule.scale == 1.0


def test_float16_trains_as_float32_does_but_for_its_rounding(tmp_path):
    """Ten steps: losses within float16's rounding of fp32's, nearer than bf16's; masters are fp32, the rest float16."""
    wanted = trained(tmp_path, "float32", learning_rate=1e-3)
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype)
        found[name] = trained(tmp_path, name, dtype=dtype, learning_rate=1e-3)
        assert all(w.dtype == dtype for w in found[name].values())
    distance = {n: max(float((w.float() - wanted[k]).abs().max()) for k, w in f.items()) for n, f in found.items()}
    apart = {n: np.abs(losses(tmp_path / n) - losses(tmp_path / "float32")).max() for n in found}
    assert apart["torch.float16"] < 0.005
    assert apart["torch.float16"] < apart["torch.bfloat16"]
    assert distance["torch.float16"] < 0.01


def test_float16_finds_its_scale_and_resumes_to_the_same_bits(tmp_path):
    """From a scale far too large the first steps overflow and change nothing, without ending the run; resumed, the same bits."""

    def run_(name, stop=None):
        with open_run(tmp_path / name) as run:
            loop = make_loop(run, dtype=torch.float16, steps=20, checkpoint_every=9, max_bad_steps=2)
            path, _ = checkpoint.newest_whole(tmp_path / name / "checkpoints")
            if path is not None:
                loop.resume(path)
            else:
                loop.guard.scale.fill_(2.0**30)
            if stop is not None:
                step = loop.stepper.step
                loop.stepper.step = lambda *a: (
                    step(*a) if loop.progress.step < stop else (_ for _ in ()).throw(KeyboardInterrupt)
                )
                with pytest.raises(KeyboardInterrupt):
                    loop.train()
            else:
                loop.train()
            return loop

    whole = run_("whole")
    skipped = events(tmp_path / "whole", "skipped")
    assert 5 < len(skipped) < 18
    assert all("overflowed in float16" in e["message"] and e["rows"] == [] for e in skipped)
    assert whole.progress.skipped == len(skipped)
    run_("parts", stop=12)
    assert same(everything(run_("parts")), everything(whole))


def test_unscaling_is_exact():
    """A gradient scaled by a power of two and divided by it in the step moves fp32 masters to the same bits as the plain one."""
    from tunesmith.training.masters import update

    ends = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        masters = {n: torch.randn(5, 3).requires_grad_() for n in "ab"}
        optimizer = adamw(masters, learning_rate=1e-2)
        for _ in range(3):
            for m in masters.values():
                m.grad = torch.randn(5, 3) * scale
            update(optimizer, [m.grad for m in masters.values()], torch.tensor(scale), torch.tensor(0.0))
        ends.append(list(masters.values()))
    assert same(*ends)


def test_weights_are_as_before_with_the_guard_off_and_on(tmp_path):
    """A run without bad steps is the run without a guard: judged good for ever, the same bits."""
    on = trained(tmp_path, "on", steps=70)
    with open_run(tmp_path / "off") as run:
        loop = make_loop(run, steps=70)
        loop.guard.judge = partial(lambda guard, *_: torch.tensor(float(GOOD)), loop.guard)
        loop.train()
    off = weights(loop)
    assert all(torch.equal(value, off[key]) for key, value in on.items())


@pytest.mark.parametrize(
    ("device", "bfloat16", "dtype"),
    [("cuda", False, "float16"), ("cuda", True, "bfloat16"), ("mps", False, "float32"), ("cpu", False, "float32")],
)
def test_float16_is_for_gpus_without_bf16(device, bfloat16, dtype):
    machine = infer.Machine(device, bfloat16, 1)
    shape = infer.Shape(parameters=1, width=1, feedforward=1, layers=1, context=64, vocabulary=97)
    found = infer.infer_model(parse({"data": "rows.jsonl"}), shape, machine)
    assert {i.key: i.value for i in found}["train.dtype"] == dtype
