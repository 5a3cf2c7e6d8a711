"""The loop: micro-batches, packing and resuming never change the mathematics; a signal ends it as it says."""

import signal
import time

import numpy as np
import pytest
import torch
from loops import EXAMPLES, losses, make_loop, trained, weights

from builders import tiny_model
from tunesmith.errors import GuardStop, Interrupted
from tunesmith.run import open_run
from tunesmith.training import checkpoint, disk
from tunesmith.training.masters import load_state_tensors
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.parallel import World
from tunesmith.training.plan import Plan


@pytest.mark.parametrize(
    ("dtype", "rate", "bound"), [(torch.float64, 1e-2, 1e-10), (torch.float32, 1e-3, 1e-5), (torch.float32, 1e-2, None)]
)
def test_microbatches_1x8_8x1_4x2_are_the_same_training(tmp_path, dtype, rate, bound):
    """Ten steps (with clipping, decay, warm-up): every step's loss agrees to 1e-5, and so do the weights at the end.

    Capacity 1 puts every row alone, 40 about two together. At rate 1e-2 in fp32 only the losses are compared: where a gradient
    is all rounding, Adam's division makes a step of the size of the rate out of it (float64 shows that nothing else differs).
    """
    whole = trained(tmp_path, "1x8", dtype=dtype, learning_rate=rate)
    for name, capacity in (("8x1", 1), ("4x2", 40)):
        other = trained(tmp_path, name, dtype=dtype, learning_rate=rate, microbatch_tokens=capacity)
        assert np.abs(losses(tmp_path / name) - losses(tmp_path / "1x8")).max() <= 1e-5
        for key, value in whole.items():
            assert bound is None or (value - other[key]).abs().max() <= bound, (name, key)


def test_a_step_equals_plain_torch(tmp_path):
    """Ten steps by the definition: mean loss over the step's scored tokens, clip, AdamW, warm-up then cosine."""
    import math

    from tunesmith.model.policy import Policy
    from tunesmith.training.batch import collate, epoch_order

    got = trained(tmp_path, "ours", dtype=torch.float64)
    model = tiny_model("llama", torch.float64)
    policy = Policy(model, flat=False)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    orders = [epoch_order(40, 0, epoch) for epoch in range(2)]
    for step in range(10):
        rate = 1e-2 * ((step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 8)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(EXAMPLES, orders[step // 5][8 * (step % 5) : 8 * (step % 5) + 8])
        optimizer.zero_grad()
        (-policy(batch).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, p in model.named_parameters():
        assert (p - got[f"model.{name}"]).abs().max() <= 1e-10, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop_after", [1, 6, 9])
def test_a_resumed_run_is_bit_equal(tmp_path, dtype, stop_after):
    """Saved after some step (with LoRA dropout, accumulation, two epochs) and continued in a new process's stead: the same bits."""
    options = {"dtype": dtype, "dropout": 0.2, "microbatch_tokens": 30, "checkpoint_every": stop_after}
    whole = trained(tmp_path, "whole", **options)
    with open_run(tmp_path / "parts") as run:
        loop = make_loop(run, **options)
        loop.plan = Plan(**{**vars(loop.plan), "steps": 10})
        stop = loop.save

        def save_and_die():
            stop()
            if loop.progress.step:
                raise KeyboardInterrupt

        loop.save = save_and_die
        with pytest.raises(KeyboardInterrupt):
            loop.train()
    torch.manual_seed(999)
    with open_run(tmp_path / "parts") as run:
        loop = make_loop(run, **options)
        path, notices = checkpoint.newest_whole(tmp_path / "parts" / "checkpoints")
        assert path.name == f"step-{stop_after}"
        assert notices == []
        loop.resume(path)
        assert loop.progress.step == stop_after
        loop.train()
    resumed = weights(loop)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_the_optimizers_state_is_not_the_file_it_was_read_from():
    """Else a checkpoint's pages stay mapped, and its bytes on the disk, for as long as the run goes on."""
    masters = {"w": torch.zeros(3, requires_grad=True)}
    read = {"w/exp_avg": torch.ones(3), "w/step": torch.tensor(1.0)}
    optimizer = adamw(masters, learning_rate=0.1)
    load_state_tensors(optimizer, masters, read)
    read["w/exp_avg"].zero_()
    assert optimizer.state[masters["w"]]["exp_avg"].tolist() == [1, 1, 1]


def test_a_signal_leaves_a_whole_checkpoint(tmp_path):
    def loss(logps, w):
        signal.raise_signal(signal.SIGTERM)
        return sft.loss(logps, w)

    with open_run(tmp_path / "run") as run:
        loop = make_loop(run, loss=loss)
        with pytest.raises(Interrupted) as stopped:
            loop.train()
    assert stopped.value.number == signal.SIGTERM
    assert str(stopped.value) == "interrupted by SIGTERM; a checkpoint is written"
    path, _ = checkpoint.newest_whole(tmp_path / "run" / "checkpoints")
    assert path.name == "step-1"


@pytest.mark.parametrize("ending", [Interrupted, GuardStop])
def test_all_processes_meet_once_the_checkpoint_under_way_is_on_disk(tmp_path, monkeypatch, ending):
    """What ends them all ends none before: writing is slow, and at the last meeting step 2 is there."""
    met = []

    class Meeting(World):
        def gather(self, value):
            met.append((value, [p.name for p in checkpoint.listed(tmp_path / "checkpoints")]))
            return [value]

    def loss(logps, w):
        if loop.progress.step == 1 and ending is Interrupted:
            signal.raise_signal(signal.SIGTERM)
        return sft.loss(logps, w) * (float("nan") if loop.progress.step == 1 and ending is GuardStop else 1)

    monkeypatch.setattr(disk, "at", lambda what: time.sleep(0.01))
    with open_run(tmp_path) as run:
        loop = make_loop(run, loss=loss, max_bad_steps=1)
        loop.world = Meeting()
        with pytest.raises(ending):
            loop.train()
    assert met[-1] == (None, ["step-0", "step-2"])
    assert [value for value, _ in met].count(None) == 1


@pytest.mark.parametrize("first", [5.0, float("nan")])
def test_early_stopping_gives_the_best_weights(tmp_path, first):
    """The validation loss is best at step 4 (none is no number); two worse ones later the run ends with step 4's weights."""
    losses = iter([first, 3.0, 1.0, 2.0, 2.5, 9.0])
    kept = {}

    def evaluate():
        value = next(losses)
        if value == 1.0:
            kept.update(weights(loop))
        return {"validation_loss": {"value": value, "n": 1, "low": value, "high": value}}

    with open_run(tmp_path / "run") as run:
        loop = make_loop(run, evaluate=evaluate, evaluate_every=2, early_stopping=2)
        progress = loop.train()
    assert progress.step == 8
    assert progress.best_step == 4
    assert progress.metrics["validation_loss"]["value"] == 1.0
    assert all(torch.equal(value, kept[key]) for key, value in weights(loop).items())
