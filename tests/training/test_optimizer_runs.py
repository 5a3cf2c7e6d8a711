"""Every optimizer in the loop: resumed to the same bits, in fp16, in two processes; schedule-free's averages; run files."""

import importlib.util
from functools import partial

import loops
import pytest
import torch
from loops import events, losses, make_loop, weights
from test_optimizers import NAMES, made
from test_parallel import together
from test_parallel import weights as result

import tunesmith
from builders import tiny_model
from tunesmith.config import parse
from tunesmith.errors import InputError
from tunesmith.run import open_run
from tunesmith.training import checkpoint, infer, optimizers
from tunesmith.training.prepare import Prepared

schedule_free = pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="needs schedulefree")


@pytest.fixture
def wide(monkeypatch):
    """Make the loops' model wide enough for 8 bits: some of its matrices have 4,096 numbers or more."""
    monkeypatch.setattr(loops, "tiny_model", partial(tiny_model, hidden_size=64))


def options(name, **more):
    schedule = "constant" if name == "schedule_free" else "cosine"
    return {"make_optimizer": made(name), "schedule": schedule, "learning_rate": 3e-3, **more}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_are_five_and_five_more_from_a_checkpoint(tmp_path, wide, name, dtype):
    """Interrupted at step 5, where nothing was to be evaluated or saved (the whole run does both elsewhere): the same bits."""
    wanted, metrics = [], []

    def run_(folder, stop=None):
        given = options(name, dtype=dtype, microbatch_tokens=60, checkpoint_every=3, evaluate_every=4)
        with open_run(tmp_path / folder) as run:
            loop = make_loop(run, **given, evaluate=lambda: {"validation_loss": {"value": probe(loop)}})
            path, _ = checkpoint.newest_whole(tmp_path / folder / "checkpoints")
            if path is not None:
                loop.resume(path)
            if stop is None:
                loop.train()
            else:
                step = loop._step
                loop._step = lambda *a: (step(*a), stop_at(loop, stop))
                with pytest.raises(KeyboardInterrupt):
                    loop.train()
            metrics.append(loop.progress.metrics)
            return loop

    def stop_at(loop, number):
        if loop.progress.step == number:
            loop.save()
            raise KeyboardInterrupt

    wanted = weights(run_("whole"))
    run_("parts", stop=5)
    found = weights(run_("parts"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())
    assert metrics[0] == metrics[2]
    assert losses(tmp_path / "whole").tolist() == losses(tmp_path / "parts").tolist()
    if name == "adamw_8bit":
        kinds = {
            t.dtype for t in checkpoint.load(tmp_path / "parts" / "checkpoints" / "step-10")[0]["optimizer"].values()
        }
        assert torch.uint8 in kinds


def probe(loop):
    """Return a number that depends on every bit of the weights."""
    return float(sum((p.detach().double() ** 2).sum() for p in loop.policy.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_float16_finds_its_scale_with_each(tmp_path, name):
    """From a scale far too large the first steps overflow and change nothing; then it learns, with finite fp32 masters."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, **options(name, dtype=torch.float16, steps=16, learning_rate=RATES.get(name, 1e-2)))
        loop.guard.scale.fill_(2.0**22)
        start = weights(loop)
        progress = loop.train()
    assert 0 < progress.skipped < 8
    assert all("overflowed" in e["message"] for e in events(tmp_path, "skipped"))
    assert all(m.dtype == torch.float32 and m.isfinite().all() for m in loop.masters.masters.values())
    assert all(not torch.equal(start[k], v) for k, v in weights(loop).items())
    found = losses(tmp_path)
    assert found[-3:].mean() < found[:3].mean() - 0.05


RATES = {"sgd": 0.3}


# -- schedule-free's averages


def averaged(loop):
    """Return x of every parameter, from y = (1 - b1) z + b1 x."""
    state = loop.optimizer.state
    return {n: (m - 0.1 * state[m]["z"]) / 0.9 if state[m] else m.clone() for n, m in loop.masters.masters.items()}


@schedule_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_evaluated_and_kept_are_the_averages(tmp_path, dtype):
    seen = []

    def evaluate():
        with torch.no_grad():
            seen.append((weights(loop), dict(trained)))
        return {"validation_loss": {"value": 1.0}}

    trained = {}
    with open_run(tmp_path) as run:
        loop = make_loop(run, **options("schedule_free", dtype=dtype, evaluate_every=2), evaluate=evaluate)
        step = loop.stepper.step

        def watched(*arguments):
            before = {n: m.detach().clone() for n, m in loop.masters.masters.items()}
            if trained:  # an evaluation in between has left them as they were, bit by bit
                assert all(torch.equal(m, trained[f"y/{n}"]) for n, m in before.items())
            outcome = step(*arguments)
            trained.update({f"y/{n}": m.detach().clone() for n, m in loop.masters.masters.items()})
            trained.update({f"x/{n}": x.detach() for n, x in averaged(loop).items()})
            return outcome

        loop.stepper.step = watched
        loop.train()
    assert len(seen) == 6
    close = {"atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    for model, then in seen[1:]:
        assert all(torch.allclose(p.float(), then[f"x/{n}"], **close) for n, p in model.items())
    assert any(not torch.allclose(p.float(), seen[-1][1][f"y/{n}"], **close) for n, p in seen[-1][0].items())
    assert all(torch.equal(p, seen[-1][0][n]) for n, p in weights(loop).items())
    kept = checkpoint.load(tmp_path / "checkpoints" / "step-10")[0]["trained"]
    assert all(torch.equal(t, trained[f"y/{n}"]) for n, t in kept.items())


@schedule_free
@pytest.mark.parametrize("best", [0, 4])
def test_the_best_state_restored_is_that_steps_average(tmp_path, best):
    seen = {}

    def evaluate():
        seen[loop.progress.step] = weights(loop)
        return {"validation_loss": {"value": float(abs(loop.progress.step - best))}}

    with open_run(tmp_path) as run:
        given = options("schedule_free", evaluate_every=2, early_stopping=2)
        loop = make_loop(run, **given, evaluate=evaluate)
        progress = loop.train()
    assert progress.best_step == best
    assert progress.step == best + 4
    assert all(torch.equal(p, seen[best][n]) for n, p in weights(loop).items())


# -- through the run file


def prepared(rows_file, tiny_folder, optimizer, **train):
    content = {"model": str(tiny_folder), "data": str(rows_file), "optimizer": optimizer, "train": train}
    return Prepared(parse(content))


@schedule_free
def test_a_run_file_with_schedule_free_gets_a_constant_schedule(rows_file, tiny_folder):
    found = prepared(rows_file, tiny_folder, "schedule_free", device="cpu")
    assert found.config.train.schedule == "constant"
    reasons = {i.key: i.reason for i in found.inferred}
    assert reasons["train.schedule"] == "schedule_free goes with no other"
    with pytest.raises(InputError) as refused:
        parse({"data": "rows.jsonl", "optimizer": "schedule_free", "train": {"schedule": "cosine"}})
    assert str(refused.value) == (
        "the run file: train.schedule is cosine, but schedule_free goes with constant alone: its averages take a falling rate's "
        "place; take train.schedule away."
    )


def test_paged_on_the_cpu_is_refused_before_weights_load(rows_file, tiny_folder):
    with pytest.raises(InputError, match=r"and train\.device is cpu; take optimizer: adamw"):
        prepared(rows_file, tiny_folder, "paged_adamw", device="cpu")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("adamw_8bit", "bitsandbytes", "quantize"), ("schedule_free", "schedulefree", "schedulefree")],
)
def test_a_missing_package_is_named_with_its_install_line(monkeypatch, name, package, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError) as refused:
        optimizers.check(name, "cpu")
    assert str(refused.value) == f"{name} needs the package {package}: pip install 'tunesmith[{extra}]'."


@pytest.mark.parametrize(("name", "instead"), [("paged_adamw", "adamw"), ("paged_adamw_8bit", "adamw_8bit")])
def test_paged_needs_a_gpu(name, instead):
    with pytest.raises(InputError, match=f"and train.device is cpu; take optimizer: {instead}.$"):
        optimizers.check(name, "cpu")
    optimizers.check("adamw", "mps")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("adamw_bnb_8bit", "adamw_8bit"),
        ("adamw_torch_fused", "adamw"),
        ("paged_adamw_32bit", "paged_adamw"),
        ("adamw_schedulefree", "schedule_free"),
        ("muonn", "muon"),
    ],
)
def test_other_tools_names_are_known(given, meant):
    with pytest.raises(InputError) as refused:
        parse({"data": "rows.jsonl", "optimizer": given})
    assert str(refused.value).endswith(f'there is no optimizer "{given}". Did you mean "{meant}"?')


def test_the_inferred_rate_is_adamws_times_the_optimizers_own():
    shape = infer.Shape(parameters=1, width=2000, feedforward=1, layers=1, context=64, vocabulary=97)
    machine, amount = infer.Machine("cpu", False, 2**34), infer.Amount(100, 1000, 20, 0)
    found = {}
    for name in ("adamw", "lion"):
        content = {"data": "rows.jsonl", "optimizer": name, "adapter": "full", "train": {"dtype": "float32"}}
        values = {i.key: i for i in infer.infer_schedule(parse(content), shape, machine, amount)}
        found[name] = values["optimizer.learning_rate"]
    ratio = made("lion").__globals__["RATE"]
    assert found["adamw"].value == 5e-5
    assert found["lion"].value == pytest.approx(5e-5 * ratio)
    assert found["lion"].reason == f"{found['adamw'].reason}, times {ratio:g} for lion"


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, rows_file, tiny_folder):
    """With each optimizer: equal weights in both processes (the loop compares them when it saves), and nearly one process's.

    Nearly: a sum in another order turns the sign of some gradient that is almost 0, and first steps are signs.
    """
    names = [p.values[0] for p in NAMES if not p.marks[0].args[0]]
    train = {"max_steps": 4, "batch_size": 8, "microbatch_tokens": 400, "activation_checkpointing": "none"}
    train |= {"device": "cpu", "dtype": "float32"}
    jobs = {
        name: {
            "model": str(tiny_folder), "data": str(rows_file), "adapter": "full", "train": train,
            "optimizer": {"name": name, "learning_rate": 1e-3},
        }
        for name in names
    }  # fmt: skip
    outputs = {name: str(tmp_path / name) for name in names}
    found = together(tmp_path, *[{"do": "train", "name": n, "config": jobs[n], "output": outputs[n]} for n in names])
    for name in names:
        assert isinstance(found[0][name], dict), found[0][name]
        tunesmith.train(jobs[name], output=f"{outputs[name]}-alone")
        alone, both = result(tmp_path / f"{name}-alone"), result(tmp_path / name)
        apart = torch.cat([(alone[k] - both[k]).abs().flatten() for k in alone])
        assert apart.mean() < 2e-5, name
