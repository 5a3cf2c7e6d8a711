"""The optimizer inside the backward pass: the ordinary update without clipping, bit by bit; what it can still refuse, and what not."""

import pytest
import torch
from loops import events, losses, make_loop, trained, weights

from tunesmith.errors import InputError
from tunesmith.run import open_run
from tunesmith.training import checkpoint
from tunesmith.training.guard import GOOD, GRADIENT, LOSS, PART, SPIKE, Guard
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers import per_parameter
from tunesmith.training.optimizers.adamw import make as adamw


def each(masters, **arguments):
    return per_parameter(lambda one: adamw(one, **arguments), masters)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("capacity", [10_000, 40])
def test_the_update_is_the_ordinary_one_bit_by_bit(tmp_path, dtype, capacity):
    """Ten steps of one micro-batch, or of several, of which the last one's backward steps."""
    options = {"dtype": dtype, "clip_norm": False, "microbatch_tokens": capacity}
    wanted = trained(tmp_path / "a", "ordinary", **options)
    assert same(trained(tmp_path / "b", "within", make_optimizer=each, **options), wanted)
    assert losses(tmp_path / "a" / "ordinary").tolist() == losses(tmp_path / "b" / "within").tolist()
    norms = [[e["grad_norm"] for e in events(f, "step")] for f in (tmp_path / "a/ordinary", tmp_path / "b/within")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_never_more_than_one_whole_gradient(tmp_path):
    """Of the masters' fp32 gradients none is left when the next is complete, and none after the backward pass."""
    most = []
    with open_run(tmp_path) as run:
        loop = make_loop(run, dtype=torch.bfloat16, make_optimizer=each, clip_norm=False, steps=2)
        step = loop.stepper.in_backward._step

        def watched(name):
            most.append(sum(m.grad is not None for m in loop.masters.masters.values()))
            step(name)
            assert loop.masters.grads() == []

        loop.stepper.in_backward._step = watched
        loop.train()
    assert set(most) == {1}
    assert len(most) == 2 * len(loop.masters.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_bit_equal(tmp_path, dtype):
    options = {"dtype": dtype, "make_optimizer": each, "clip_norm": False, "checkpoint_every": 4, "keep_last": 10}
    whole = trained(tmp_path, "whole", **options)
    with open_run(tmp_path / "rest") as run:
        loop = make_loop(run, **options)
        loop.resume(tmp_path / "whole" / "checkpoints" / "step-4")
        loop.train()
    assert same(weights(loop), whole)


def test_a_loss_that_is_no_number_changes_nothing(tmp_path):
    def loss(logps, w):
        return sft.loss(logps, w) * (float("nan") if loop.progress.step == 2 else 1)

    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=loss, make_optimizer=each, clip_norm=False, steps=3, checkpoint_every=1, keep_last=9)
        loop.train()
    before, after = (checkpoint.load(tmp_path / "checkpoints" / f"step-{n}")[0] for n in (2, 3))
    assert same(before["trained"], after["trained"])
    assert same(before["optimizer"], after["optimizer"])
    assert [e["message"].split(" (")[0] for e in events(tmp_path, "skipped")] == [
        "step 3 changed nothing, because its loss is no finite number"
    ]


def test_a_gradient_that_is_no_number_leaves_its_own_parameter_alone(tmp_path):
    """One weight's gradient is made NaN at step 2; that weight and its moments keep their bits, others move, and the run says so."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, make_optimizer=each, clip_norm=False, steps=2, checkpoint_every=1, keep_last=9)
        name = next(n for n in loop.masters.masters if "layers.0.mlp.up_proj" in n)
        loop.masters.working[name].register_hook(lambda g: g * float("nan") if loop.progress.step == 1 else g)
        loop.train()
    before, after = (checkpoint.load(tmp_path / "checkpoints" / f"step-{n}")[0] for n in (1, 2))
    equal = {n for n in before["trained"] if torch.equal(before["trained"][n], after["trained"][n])}
    assert equal == {name}
    assert torch.equal(before["optimizer"][f"{name}/exp_avg"], after["optimizer"][f"{name}/exp_avg"])
    said = events(tmp_path, "skipped")[0]["message"]
    assert said.startswith(
        "step 2 changed a part of the weights only, because some of its gradients are no finite numbers (random"
    )


def test_the_guard_knows_beforehand_what_the_loss_alone_tells():
    """64 losses about 1, then one of 3: more than a doubling. A norm that is a spike is learnt of too late."""
    guard = Guard(torch.device("cpu"), scaled=False)
    number = torch.tensor
    for i in range(64):
        guard.judge(number(1 + 0.01 * (i % 3)), number(1.0))
    state = {name: value.clone() for name, value in guard.state().items()}
    assert [int(guard.foresee(number(x))) for x in (1.0, 3.0, float("nan"), float("inf"))] == [0, 1, 1, 1]
    assert all(torch.equal(value, guard.state()[name]) for name, value in state.items())

    def late(loss, norm):
        guard.load(state)
        return int(guard.judge_late(number(loss), number(norm), guard.foresee(number(loss))))

    assert late(1.0, 1.0) == late(1.0, 50.0) == GOOD
    assert late(3.0, 1.0) == SPIKE
    assert late(1.0, float("nan")) == PART
    assert late(3.0, float("inf")) == GRADIENT
    assert late(float("nan"), 1.0) == LOSS


def test_memory_that_runs_out_before_a_weight_is_changed_halves_the_microbatches(tmp_path):
    wanted = trained(tmp_path, "enough", dtype=torch.float64, clip_norm=False, microbatch_tokens=100)
    with open_run(tmp_path / "short") as run:
        loop = make_loop(run, dtype=torch.float64, make_optimizer=each, clip_norm=False, microbatch_tokens=100)
        loop.policy.multiple = 1
        forward = loop.policy.forward

        def limited(batch):
            found = forward(batch)
            if len(batch.ids) > 40:
                found.register_hook(lambda _: (_ for _ in ()).throw(MemoryError()))
            return found

        loop.policy.forward = limited
        loop.train()
    assert loop.stepper.capacity < 100
    found = dict(loop.policy.named_parameters())
    assert all((value - found[name]).abs().max() <= 1e-10 for name, value in wanted.items())


def test_memory_that_runs_out_afterwards_ends_the_run(tmp_path):
    with open_run(tmp_path) as run:
        loop = make_loop(run, make_optimizer=each, clip_norm=False, microbatch_tokens=100)
        norm = loop.policy.transformer.get_decoder().layers[0].input_layernorm

        def fail(_):
            raise torch.OutOfMemoryError

        norm.register_forward_hook(lambda module, given, out: out.register_hook(fail) and None)
        with pytest.raises(
            InputError, match=r"had changed weights \(train.optimizer_in_backward\), so the step cannot"
        ):
            loop.train()


REFUSED = [
    ({"train": {"clip_norm": 1.0}}, "so nothing can be clipped by it; set train.clip_norm: false."),
    ({"train": {"dtype": "float16"}}, "set train.dtype: bfloat16."),
    ({"regularizer": "decay_to_base"}, "before the regularizer adds its gradient; take one of the two away."),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_needs_all_gradients_at_once_is_refused(changes, words):
    from tunesmith.config import parse

    train = {"optimizer_in_backward": True, "clip_norm": False, **changes.get("train", {})}
    with pytest.raises(InputError) as e:
        parse({"data": "x.jsonl", **changes, "train": train})
    assert str(e.value).startswith("the run file: train.optimizer_in_backward ")
    assert str(e.value).endswith(words)
