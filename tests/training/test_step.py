"""One optimizer step: where memory runs out it is done again in smaller parts, and it never waits for the device."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from loops import EXAMPLES, events, losses, make_loop, trained, unfused
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.errors import InputError
from tunesmith.run import open_run
from tunesmith.training import checkpoint, memory
from tunesmith.training.batch import FlatBatch
from tunesmith.training.loop import LOG_EVERY
from tunesmith.training.objectives import sft
from tunesmith.training.parallel import World

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    MemoryError(),
]


def limited(loop, most, error, in_backward=False, multiple=1):
    """Let the policy fail with `error` on more than `most` tokens, before its forward or in the middle of its backward."""
    loop.policy.multiple = multiple
    forward = loop.policy.forward
    sizes = []

    def fail(grad):
        raise error

    def run(batch):
        sizes.append(len(batch.ids))
        if len(batch.ids) <= most:
            return forward(batch)
        if not in_backward:
            raise error
        decoder = loop.policy.transformer.get_decoder()
        handle = decoder.layers[0].register_forward_hook(lambda module, given, out: out.register_hook(fail) and None)
        try:
            return forward(batch)
        finally:
            handle.remove()

    loop.policy.forward = run
    return sizes


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_out_of_memory_halves_the_microbatches_and_changes_nothing_else(tmp_path, error, in_backward):
    """Eight rows of 3 to 19 tokens in micro-batches of 100, above 40 memory runs out: the same losses to 1e-6, and the same weights."""
    wanted = trained(tmp_path, "enough", microbatch_tokens=100, dtype=torch.float64)
    with open_run(tmp_path / "short") as run:
        loop = make_loop(run, microbatch_tokens=100, dtype=torch.float64)
        sizes = limited(loop, 40, error, in_backward)
        loop.train()
    assert np.abs(losses(tmp_path / "short") - losses(tmp_path / "enough")).max() <= 1e-6
    found = dict(loop.policy.named_parameters())
    assert all((value - found[key]).abs().max() <= 1e-10 for key, value in wanted.items())
    told = [e["message"] for e in events(tmp_path / "short", "notice")]
    failed = [n for n in sizes if n > 40]
    assert len(told) == len(failed) <= 2  # halved once or twice, then kept
    assert told[0].startswith(f"memory ran out over a micro-batch of {failed[0]} tokens; the step is done again")
    assert loop.progress.microbatch_tokens == loop.stepper.capacity == failed[-1] // 2


def test_the_smaller_value_is_kept_by_a_resumed_run(tmp_path):
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=100)
        limited(loop, 40, OUT_OF_MEMORY[0])
        loop.train()
    path, _ = checkpoint.newest_whole(tmp_path / "checkpoints")
    assert json.loads((path / "state.json").read_text())["progress"]["microbatch_tokens"] == loop.stepper.capacity < 60
    with open_run(tmp_path) as run:
        again = make_loop(run, microbatch_tokens=100)
        again.resume(path)
    assert again.stepper.capacity == loop.stepper.capacity


def test_dropout_draws_the_same_after_a_step_is_done_again(tmp_path):
    """The third micro-batch of step 4 fails once, though it would fit; the step begins anew with the random state it began with.

    (Its parts are smaller then, so that other numbers fall on other tokens: compared is the state that the step begins with.)
    """
    seen = []
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=30, dropout=0.5)
        forward, calls = loop.policy.forward, []

        def run_(batch):
            calls.append(loop.progress.step)
            if calls.count(3) == 1 or (calls.count(3) == 4 and calls[-1] == 3):
                seen.append(torch.get_rng_state())
            if calls[-1] == 3 and calls.count(3) == 3:
                raise MemoryError
            return forward(batch)

        loop.policy.forward = run_
        loop.train()
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("multiple", [1, 64])
def test_a_row_that_does_not_fit_is_named(tmp_path, multiple):
    """The longest row of the step, alone, is too much: no smaller part is left, whatever it is filled up with."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=100)
        limited(loop, 3, OUT_OF_MEMORY[0], multiple=multiple)
        with pytest.raises(InputError) as e:
            loop.train()
    first = next(loop._steps()).rows
    longest = first[EXAMPLES.lengths[first].argmax()]
    said = str(e.value)
    assert f"one row of {EXAMPLES.lengths[longest]} tokens (random, row {longest + 1}): lower train.max_length" in said
    assert "\n" not in said


def test_batches_filled_up_are_halved_by_their_rows(tmp_path):
    """Filled up to 64 tokens each: 128 do not fit, and half of the rows' own tokens do."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=100)
        sizes = limited(loop, 64, OUT_OF_MEMORY[0], multiple=64)
        loop.train()
    assert set(sizes) == {64, 128}
    assert 32 < loop.stepper.capacity <= 50


def test_what_another_process_found_is_in_the_next_checkpoint(tmp_path):
    """Memory ran out in another process during step 1, which is saved: the smaller value with it."""

    class Other(World):
        def most(self, *numbers):
            return [numbers[0], max(numbers[1], -50)]

    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=100, steps=1)
        loop.world = Other()
        loop.train()
    state = json.loads((tmp_path / "checkpoints" / "step-1" / "state.json").read_text())
    assert state["progress"]["microbatch_tokens"] == loop.stepper.capacity == 50


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
    ],
)
def test_memory_that_ran_out_is_known_by_its_words(words, known):
    assert memory.ran_out(RuntimeError(words)) is known


def test_batches_stay_on_the_host_until_their_turn(tmp_path, monkeypatch):
    """The thread that makes them ahead moves none; each goes to the device once, just before its forward."""
    moved, seen = [], []
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=30, steps=2)
        monkeypatch.setattr(FlatBatch, "to", lambda batch, device: moved.append(batch) or batch)
        forward = loop.policy.forward

        def watched(batch):
            seen.append((len(moved), batch is moved[-1]))
            return forward(batch)

        loop.policy.forward = watched
        loop.train()
    assert seen == [(n, True) for n in range(1, len(seen) + 1)]


def test_other_errors_pass(tmp_path):
    with open_run(tmp_path) as run:
        loop = make_loop(run)
        limited(loop, 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            loop.train()


class Waits(TorchDispatchMode):
    """Notes at which step an operator ran whose result the host needs: what on a GPU would wait for it."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "bincount")

    def __init__(self, loop):
        super().__init__()
        self.loop, self.found = loop, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(t is not None and t.dtype == torch.bool for t in indices)
        if by_mask or name in self.NAMES:
            self.found.append((self.loop.progress.step, name))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["full", "lora"])
def test_a_step_waits_for_nothing_between_readings(tmp_path, monkeypatch, dtype, dropout):
    """Thirty steps on a device that computes asynchronously (played by the CPU): the host reads at steps 2, 10, 20 and 30."""
    lists, main = [], threading.current_thread()

    def note():
        if threading.current_thread() is main:  # the batches that are made ahead are the host's own
            lists.append(loop.progress.step)

    with open_run(tmp_path) as run:
        loop = make_loop(run, dtype=dtype, dropout=dropout, steps=30, microbatch_tokens=60)
        loop.save = lambda: None
        loop.device = torch.device("meta")
        for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__"):
            original = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, lambda t, *a, f=original, **k: note() or f(t, *a, **k))
        with Waits(loop) as waits:
            loop.train()
    assert {step for step, _ in waits.found} | set(lists) <= {0, 2, *range(LOG_EVERY, 31, LOG_EVERY)}
    assert lists.count(2) == 1
    assert lists.count(10) == lists.count(20) == 2  # the steps' numbers together, and the weights' norm
    assert len(losses(tmp_path)) == 30


def test_losses_read_late_are_those_read_at_once(tmp_path):
    trained(tmp_path, "at once", steps=15)
    with open_run(tmp_path / "late") as run:
        loop = make_loop(run, steps=15)
        loop.device = torch.device("meta")
        loop.train()
    assert losses(tmp_path / "late").tolist() == losses(tmp_path / "at once").tolist()
    assert len(loop.progress.step_seconds) == len(loop.progress.step_tokens) == 15


def test_what_the_first_two_steps_left_to_do_is_not_in_the_seconds_of_later_ones(tmp_path):
    """A device that finishes step 2 long after the host has queued it: the wait is in step 2's seconds, which do not count."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, steps=12)
        loop.device = torch.device("meta")
        read, step, slow = loop.journal.read, loop.stepper.step, []

        def queued(*arguments):
            if loop.progress.step == 1:
                slow.append(0.3)
            return step(*arguments)

        def late(*arguments):
            if slow:
                time.sleep(slow.pop())
            return read(*arguments)

        loop.stepper.step, loop.journal.read = queued, late
        loop.train()
    assert loop.progress.step_seconds[1] > 0.3
    assert max(loop.progress.step_seconds[2:]) < 0.3


def test_an_objective_sees_the_whole_step_once(tmp_path):
    """The reported loss is the sum over the step's scored tokens divided by their number, whatever the micro-batches."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, steps=1, microbatch_tokens=20)
        rows = next(loop._steps()).rows
        with torch.no_grad():
            wanted = (
                sum(sft.loss(loop.policy(b), b.weights) for b in loop.stepper.batches(rows))
                / loop.examples.row_scored[rows].sum()
            )
        loop.train()
    assert losses(tmp_path)[0] == pytest.approx(float(wanted), abs=1e-6)


def test_the_unfused_step_waits_and_the_watch_for_waits_sees_it(tmp_path):
    with open_run(tmp_path) as run:
        loop = make_loop(run, steps=4, make_optimizer=unfused)
        loop.save = lambda: None
        loop.device = torch.device("meta")
        with Waits(loop) as waits:
            loop.train()
    assert {0, 1, 2, 3} <= {step for step, _ in waits.found}


def test_a_long_row_beside_does_not_keep_microbatches_from_being_halved(tmp_path):
    """Capacity 12 is below the longest row, which runs alone and fits; what does not fit are ten tokens of several short rows."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, microbatch_tokens=12)
        loop.policy.multiple = 1
        forward = loop.policy.forward

        def few(batch):
            if len(batch.lengths) > 1:
                raise MemoryError
            return forward(batch)

        loop.policy.forward = few
        loop.train()
    assert loop.stepper.capacity < 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu_waits_for_nothing(tmp_path, dtype):
    """torch itself raises where a step, a skipped one too, waits for the device."""
    with open_run(tmp_path) as run:
        loop = make_loop(run, dtype=dtype, device="cuda", steps=12, microbatch_tokens=60)
        step = loop.stepper.step

        def watched(*arguments):
            if loop.progress.step == 5:
                loop.stepper.objective.function = lambda logps, weights: sft.loss(logps, weights) * float("nan")
            elif loop.progress.step == 6:
                loop.stepper.objective.function = sft.loss
            torch.cuda.set_sync_debug_mode("error" if loop.progress.step else "default")
            try:
                return step(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        loop.stepper.step = watched
        progress = loop.train()
    assert progress.step == 12
    assert 6 in [e["step"] for e in events(tmp_path, "skipped")]
    assert all(torch.isfinite(m).all() for m in loop.masters.masters.values())
