"""A run killed at any moment is resumed to the same bits: weights, optimizer, random states and result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "driver.py"


def killed(material, tmp_path, kind, how, seed) -> dict:
    folder = shutil.copytree(material, tmp_path / "material")
    child = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), kind, how, str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_while_a_checkpoint_is_written(material, tmp_path, kind):
    """SIGKILL at five of the writes, syncs, renames and deletions of a save, and at one outside; a sample of the slow test's."""
    found = killed(material, tmp_path, kind, "sample", seed=0)
    assert found["different"] == {}
    assert found["points"] == 6
    assert {1, 2} <= set(found["from"])  # before and after the rename of step 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_at_every_write_sync_and_rename_of_a_save(material, tmp_path, kind):
    """And at the first of each kind that belongs to the run itself: its settings, state, measurements and result."""
    found = killed(material, tmp_path, kind, "all", seed=0)
    assert found["different"] == {}
    assert found["points"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_at_random_moments(material, tmp_path, kind):
    found = killed(material, tmp_path, kind, "at-random", seed=1)
    assert found["different"] == {}
    assert found["points"] == 10
