"""Checkpoints: what is damaged is named and the one before used; nothing unfinished is ever seen."""

import json

import pytest
import torch

from tunesmith.training import checkpoint


def save(folder, step):
    return checkpoint.save(
        folder, step, {"trained": {"w": torch.full((3,), float(step))}}, {"progress": {"step": step}}
    )


@pytest.mark.parametrize("name", ["trained.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["delete", "truncate", "flip"])
def test_a_damaged_file_is_named_and_the_one_before_used(tmp_path, name, harm):
    save(tmp_path, 1)
    last = save(tmp_path, 2)
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
    if name != "manifest.json":
        assert name in notices[0]
    tensors, state = checkpoint.load(path)
    assert torch.equal(tensors["trained"]["w"], torch.ones(3))
    assert state == {"progress": {"step": 1}}


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
