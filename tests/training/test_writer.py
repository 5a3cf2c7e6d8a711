"""The background writer: a checkpoint is of one step whatever the loop does next, and what goes wrong is told at the next call."""

import errno
import threading

import psutil
import pytest
import torch

from tunesmith.errors import InputError
from tunesmith.training import checkpoint, disk
from tunesmith.training.writer import Writer, packed, snapshot


@pytest.fixture
def gate(monkeypatch):
    """Every write waits until the gate is opened."""
    gate = threading.Event()
    monkeypatch.setattr(disk, "at", lambda _: gate.wait(10))
    yield gate
    gate.set()


def tensors(value):
    w = torch.full((1000,), float(value))
    return {"trained": {"w": w}, "optimizer": {"w/step": torch.tensor(float(value)), "w/exp_avg": w / 2}}


def test_the_checkpoint_is_of_the_step_it_was_taken_at(tmp_path, gate):
    """Tensors and state that change in place while nothing is written yet: the file has what was there before."""
    live, state = tensors(1), {"progress": {"metrics": {"loss": 1.0}}}
    writer = Writer(tmp_path, 2)
    writer.submit(1, live, state, None)
    for group in live.values():
        for t in group.values():
            t.fill_(99)
    state["progress"]["metrics"]["loss"] = 99.0
    assert writer.written() == []
    assert checkpoint.listed(tmp_path) == []
    gate.set()
    writer.wait()
    assert writer.written() == [tmp_path / "step-1"]
    assert writer.written() == []
    read, facts = checkpoint.load(tmp_path / "step-1")
    assert facts == {"progress": {"metrics": {"loss": 1.0}}}
    for file, group in tensors(1).items():
        assert all(torch.equal(read[file][k], t) for k, t in group.items())


def test_only_a_second_save_waits_for_the_first(tmp_path, gate):
    writer = Writer(tmp_path, 2)
    writer.submit(1, tensors(1), {}, None)  # returns though no byte is written
    second = threading.Thread(target=writer.submit, args=(2, tensors(2), {}, None))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    gate.set()
    second.join()
    writer.wait()
    assert writer.written() == [tmp_path / "step-1", tmp_path / "step-2"]


def test_the_best_and_the_last_are_kept_and_a_step_is_written_once(tmp_path, monkeypatch):
    writer = Writer(tmp_path, 2)
    for step in (1, 2, 3, 4, 5):
        writer.submit(step, tensors(step), {}, best_step=2 if step > 1 else 1)
        writer.submit(step, tensors(step), {}, best_step=2 if step > 1 else 1)
    writer.wait()
    assert [p.name for p in checkpoint.listed(tmp_path)] == ["step-2", "step-4", "step-5"]
    assert [p.name for p in writer.written()] == [f"step-{n}" for n in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("call", ["written", "wait", "submit"])
def test_a_disk_that_fills_while_writing_is_told_at_the_next_call(tmp_path, monkeypatch, call):
    writer = Writer(tmp_path, 1)
    writer.submit(1, tensors(1), {}, None)
    writer.wait()

    def full(what):
        if what == "sync optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(disk, "at", full)
        writer.submit(2, tensors(2), {}, None)
        writer._thread.join()
        calls = {
            "written": writer.written,
            "wait": writer.wait,
            "submit": lambda: writer.submit(3, tensors(3), {}, None),
        }
        with pytest.raises(InputError) as said:
            calls[call]()
    text = str(said.value)
    assert f"{tmp_path}: the checkpoint of step 2 did not fit" in text
    assert "bytes are free; step-1 is whole: free space there and continue with --resume." in text
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    writer.submit(2, tensors(2), {}, None)  # told once; the next try is a new one
    writer.wait()
    assert checkpoint.newest_whole(tmp_path) == (tmp_path / "step-2", [])


def test_a_failing_disk_and_a_defect_are_told_as_what_they_are(tmp_path, monkeypatch):
    writer = Writer(tmp_path, 1)
    for error, kind, words in (
        (
            OSError(errno.EIO, "Input/output error"),
            InputError,
            "step 1 cannot be written .Input/output error.; no check",
        ),
        (ZeroDivisionError("ours"), ZeroDivisionError, "ours"),
    ):
        with monkeypatch.context() as m:
            m.setattr(disk, "at", lambda _, error=error: (_ for _ in ()).throw(error))
            writer.submit(1, tensors(1), {}, None)
            with pytest.raises(kind, match=words):
                writer.wait()


def test_a_disk_without_room_is_refused_before_a_byte_is_written(tmp_path, monkeypatch):
    writer = Writer(tmp_path, 1)
    writer.submit(1, tensors(1), {}, None)
    writer.wait()
    monkeypatch.setattr(disk, "at", lambda what: pytest.fail(what))
    monkeypatch.setattr(disk, "free", lambda _: 8000)
    with pytest.raises(InputError) as said:
        writer.submit(2, tensors(2), {}, None)
    needed = 8004 + 3 * 512 + 65536
    assert str(said.value) == (
        f"{tmp_path}: the checkpoint of step 2 takes {needed:,} bytes and 8,000 are free; step-1 is whole: "
        "free space there and continue with --resume."
    )


def test_a_checkpoint_takes_no_more_than_was_reckoned(tmp_path):
    many = {"trained": {f"model.layers.{i}.mlp.down_proj.lora_A.default.weight": torch.zeros(3) for i in range(300)}}
    path = checkpoint.save(tmp_path, 1, many, {})
    taken = sum(p.stat().st_blocks * 512 for p in path.iterdir())
    assert 3600 < taken <= disk.checkpoint_bytes(3600, 300)


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=10_000))
    writer = Writer(tmp_path, 1)
    writer.submit(1, tensors(1), {}, None)
    assert writer.written() == [tmp_path / "step-1"]


def test_copies_packed_into_one_block_are_the_same_tensors():
    """Dtypes, dimensions and gaps as a GPU's snapshot has them; nothing is shared with the originals."""
    group = {f"{d}": torch.arange(5).to(d) for d in (torch.float32, torch.bfloat16, torch.uint8, torch.int64)}
    group |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "matrix": torch.randn(7, 3)}
    copies = packed(group, pin=False)
    wanted = {k: t.clone() for k, t in group.items()}
    for t in group.values():
        t.fill_(1)
    assert list(copies) == list(group)
    assert all(copies[k].dtype == t.dtype and torch.equal(copies[k], t) for k, t in wanted.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_snapshot_of_a_gpu_is_of_the_moment_it_was_queued():
    w = torch.zeros(1 << 24, device="cuda")
    for _ in range(50):
        w.add_(1)
    ready = snapshot({"trained": {"w": w}, "random": {"0/cpu": torch.get_rng_state()}})
    for _ in range(50):
        w.add_(1)
    assert torch.equal(ready()["trained"]["w"], torch.full((1 << 24,), 50.0))
