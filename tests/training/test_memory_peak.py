"""What a run is foretold to need against what a process took."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def peak(*asked):
    """Return (bytes taken, bytes foreseen)."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(here / "memory_peak.py"), *map(str, asked)]
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return tuple(map(int, out.split()[-2:]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["none", "selective", "full"])
@pytest.mark.parametrize(("adapter", "within"), [("lora", "after"), ("full", "after"), ("full", "within")])
def test_memory_is_foreseen_within_a_fifth(adapter, within, how):
    taken, foreseen = peak(adapter, how, 8, within)
    assert 0.8 < foreseen / taken < 1.2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_gradients_are_not_held_where_the_optimizer_steps_in_the_backward_pass():
    """Where activations are few: of the gradients, 4 bytes for each of 32 million weights, more than half is spared at the peak."""
    after, _ = peak("full", "full", 1, "after")
    within, _ = peak("full", "full", 1, "within")
    assert after - within > 0.5 * 4 * 32_000_000
