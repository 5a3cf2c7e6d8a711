"""Checkpoints: what is damaged is named and the one before used; nothing unfinished is ever seen."""

import errno
import hashlib
import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.training import checkpoint, disk

FILES = ["trained.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"]


def save(folder, step):
    w = torch.full((3,), float(step))
    tensors = {"trained": {"w": w}, "optimizer": {"w/exp_avg": w / 2}, "random": {"0/cpu": torch.get_rng_state()}}
    return checkpoint.save(folder, step, tensors, {"progress": {"step": step}})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["delete", "truncate", "flip"])
def test_a_damaged_file_is_named_and_the_one_before_used(tmp_path, name, harm):
    save(tmp_path, 1)
    last = save(tmp_path, 2)
    assert sorted(p.name for p in last.iterdir()) == sorted(FILES)
    file = last / name
    content = bytearray(file.read_bytes())
    if harm == "delete":
        file.unlink()
    elif harm == "truncate":
        file.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    path, notices = checkpoint.newest_whole(tmp_path)
    assert path.name == "step-1"
    assert len(notices) == 1
    assert "step-2 is damaged" in notices[0]
    assert name in notices[0] or (name, harm) == ("manifest.json", "flip")  # a checksum flipped: the file it is of
    tensors, state = checkpoint.load(path)
    assert torch.equal(tensors["trained"]["w"], torch.ones(3))
    assert state == {"progress": {"step": 1}}


def test_any_bit_of_the_manifest_flipped_is_found(tmp_path):
    """Each of its bits in turn: what still reads as the same checksums (a line's end for a tab, say) does no harm."""
    manifest = save(tmp_path, 1) / "manifest.json"
    content = manifest.read_bytes()
    wanted = json.loads(content)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        if checkpoint.damage(manifest.parent) is None:
            assert json.loads(flipped) == wanted


def test_files_are_what_the_safetensors_library_reads(tmp_path):
    """Every dtype, no dimension, no element, not contiguous, larger than a piece; each aligned to its size."""
    group = {f"{dtype}": torch.arange(7).to(dtype) for dtype in checkpoint.DTYPES}
    group |= {"none": torch.zeros(0, 4), "scalar": torch.tensor(3.0), "turned": torch.arange(6.0).reshape(2, 3).t()}
    group["large"] = torch.randn((checkpoint.PIECE + 5000) // 4)
    path = checkpoint.save(tmp_path, 1, {"group": group}, {})
    read = load_file(path / "group.safetensors")
    assert read.keys() == group.keys()
    for name, t in group.items():
        assert read[name].dtype == t.dtype
        assert torch.equal(read[name], t), name
    content = (path / "group.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert (8 + length + entry["data_offsets"][0]) % group[name].dtype.itemsize == 0
    sums = json.loads((path / "manifest.json").read_text())
    assert sums["group.safetensors"] == hashlib.sha256(content).hexdigest()


def test_everything_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    """What a power failure takes is what was not synced: no moment has the name without the content."""
    seen = []
    monkeypatch.setattr(disk, "at", seen.append)
    save(tmp_path / "checkpoints", 3)
    rename = seen.index("rename step-3")
    assert {f"sync {name}" for name in FILES} <= set(seen[:rename])
    assert seen[rename - 1] == "sync .step-3.part"
    assert seen[rename:] == ["rename step-3", "sync checkpoints"]
    for name in FILES:
        assert max(i for i, what in enumerate(seen) if what == f"write {name}") < seen.index(f"sync {name}")


def moments(tmp_path, monkeypatch) -> int:
    seen = []
    with monkeypatch.context() as m:
        m.setattr(disk, "at", seen.append)
        save(tmp_path / "counted", 1)
    return len(seen)


def test_a_disk_that_refuses_at_any_moment_leaves_the_one_before_and_no_litter(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for moment in range(moments(tmp_path, monkeypatch) - 1):  # the last is the sync after the rename: step 2 is there

        def refuse(what, left=[moment]):  # noqa: B006 (a counter of this moment's own)
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr(disk, "at", refuse)
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path, 2)
        assert checkpoint.newest_whole(tmp_path) == (tmp_path / "step-1", [])
        assert {p.name for p in tmp_path.iterdir()} == {"step-1", "counted"}
    save(tmp_path, 2)
    assert checkpoint.newest_whole(tmp_path) == (tmp_path / "step-2", [])


def test_an_unfinished_save_is_not_a_checkpoint_and_is_cleared(tmp_path):
    save(tmp_path, 1)
    part = tmp_path / ".step-2.part"
    part.mkdir()
    (part / "state.json").write_text(json.dumps({}))
    assert [p.name for p in checkpoint.listed(tmp_path)] == ["step-1"]
    checkpoint.prune(tmp_path, 1, None)
    assert not part.exists()


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2, 4)
    assert [p.name for p in checkpoint.listed(tmp_path)] == ["step-4", "step-8", "step-10"]


def test_a_step_saved_twice_is_never_away(tmp_path):
    """The second save of a whole step touches nothing (a run killed in between would find none); a damaged one is replaced."""
    first = save(tmp_path, 2)
    before = first.stat().st_ino
    assert save(tmp_path, 2) == first
    assert first.stat().st_ino == before
    (first / "state.json").write_text("{")
    save(tmp_path, 2)
    assert checkpoint.damage(first) is None


def test_a_damaged_newer_checkpoint_costs_no_whole_one_its_place(tmp_path):
    """Step 20 is damaged and the run goes on from 10: of the last one kept, 12 is the last."""
    save(tmp_path, 10)
    (save(tmp_path, 20) / "state.json").write_text("{")
    save(tmp_path, 12)
    checkpoint.prune(tmp_path, 1, None)
    assert [p.name for p in checkpoint.listed(tmp_path)] == ["step-12"]


def test_random_states_of_every_generator_come_back(tmp_path):
    """torch's, Python's and numpy's, with the normal deviate that two of them hold back; another process keeps its own."""

    def draw():
        return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    random.gauss(0, 1)
    np.random.randn()
    states = {**checkpoint.rng_state(0), **{f"1/{k[2:]}": v for k, v in checkpoint.rng_state(0).items()}}
    path = checkpoint.save(tmp_path, 1, {"random": states}, {})
    wanted = draw()
    for rank in (0, 1):
        draw()
        checkpoint.set_rng_state(checkpoint.load(path)[0]["random"], rank)
        assert draw() == wanted
    checkpoint.set_rng_state(checkpoint.load(path)[0]["random"], rank=2)
    assert draw() != wanted
