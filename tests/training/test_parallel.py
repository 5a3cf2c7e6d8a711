"""Several processes: the same training as one process's, the same continuation, and an end for all when one ends."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith import run
from tunesmith.errors import InputError
from tunesmith.training import parallel
from tunesmith.training.parallel import ALONE, World, checksum, deal

DRIVER = str(Path(__file__).with_name("parallel_driver.py"))


def launch(command: list[str], size: int = 2) -> list[subprocess.Popen]:
    """Start `size` processes as torchrun would."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Return (exit code, standard output, standard error) of each; all are dead afterwards."""
    try:
        told = [p.communicate(timeout=seconds) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def together(folder: Path, *jobs: dict) -> list[dict]:
    """Do the jobs in two processes and return what each of them found."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    told = ended(launch([DRIVER, str(file)]))
    assert [code for code, _, _ in told] == [0, 0], "\n".join(err for _, _, err in told)
    return [json.loads((folder / f"jobs-{rank}.json").read_text()) for rank in range(2)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "result").glob("*.safetensors")
    return load_file(file)


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between any two weights."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def losses(folder: Path) -> np.ndarray:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return np.array([e["loss"] for e in events if e["event"] == "step"])


@pytest.fixture
def asked(tiny_folder, rows_file):
    """A run of 8 steps of 6 rows, cut into micro-batches, and evaluated by answers."""

    def make(folder: Path, name: str, adapter: dict, **more) -> dict:
        config = {
            "model": str(tiny_folder),
            "data": [{"path": str(rows_file)}],
            "validation": {"fraction": 0.2},
            "adapter": adapter,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "train": {
                "max_steps": 8, "batch_size": 6, "microbatch_tokens": 150, "evaluate_every": 4, "checkpoint_every": 3,
                "dtype": "float32", "device": "cpu",
            },
            "evaluate": [{"name": "exact_match"}, {"name": "perplexity"}],
        }  # fmt: skip
        return {"config": config, "output": str(folder / name), **more}

    return make


FULL, LORA, DROPPED = {"name": "full"}, {"name": "lora", "r": 4}, {"name": "lora", "r": 4, "dropout": 0.3}


# -- one process, no processes


def test_rows_are_dealt_evenly_and_each_to_one():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 8):
        lengths = rng.integers(1, 500, 64)
        parts = deal(lengths, size)
        assert sorted(np.concatenate(parts).tolist()) == list(range(64))
        tokens = [int(lengths[p].sum()) for p in parts]
        assert max(tokens) - min(tokens) <= lengths.max()
        assert all((np.diff(p) > 0).all() for p in parts)
    assert [p.tolist() for p in deal(np.array([5, 5, 3, 7]), 2)] == [[2, 3], [0, 1]]
    assert [p.tolist() for p in deal(np.array([4]), 3)] == [[0], [], []]  # two have nothing to do in such a step
    assert [p.tolist() for p in deal(np.array([], dtype=np.int64), 2)] == [[], []]


def test_one_process_is_a_world_that_asks_nobody(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", None)  # importing it would raise
    with parallel.joined() as world:
        assert world is ALONE
        t = torch.ones(3)
        world.sum_([t])
        world.broadcast_([t])
        assert t.tolist() == [1, 1, 1]
        assert (world.most(3, -4), world.gather("a"), world.broadcast("b")) == ([3, -4], ["a"], "b")
        assert world.first(lambda: 5) == world.together(lambda: 5) == 5
        assert world.share(np.array([3, 9, 1])).tolist() == [0, 1, 2]
        assert world.device("cuda") == "cuda"
        world.same(1, "another number")


def test_seeds_differ_by_process_and_step():
    seeds = [World(rank, 4).seed(0, step) for rank in range(4) for step in (0, 1)]
    assert len(set(seeds)) == 8
    assert World(2, 4).seed(0, 1) == World(2, 8).seed(0, 1)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert World(0, 2, 0).device("cuda") == "cuda:0"
    assert chosen == [0]
    assert World(1, 2, 1).device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"than it has GPUs \(1\); start one per GPU"):
        World(1, 2, 1).device("cuda")
    with pytest.raises(InputError, match="mps, which several processes cannot share"):
        World(0, 2, 0).device("mps")


def test_the_checksum_sees_every_bit_and_the_order():
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[4.0], [5.0]], dtype=torch.bfloat16)
    assert checksum([a, b]) == checksum([a.clone(), b.clone()])
    changed = a.clone()
    changed.view(torch.int32)[2] ^= 1
    assert len({checksum(x) for x in ([a, b], [changed, b], [b, a], [a, b.flip(0)], [a[1:], b])}) >= 4


def test_a_launch_that_is_not_whole_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; launch with torchrun"):
        tunesmith.train(data="rows.jsonl")


# -- two


def test_two_processes_train_as_one_does(asked, tmp_path):
    """Weights after eight fp32 steps to 1e-5, and every loss, metric and answer; after six float64 steps to 1e-10.

    One family has routers, whose loss is of the whole step; a step of one row leaves one of the processes without any.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    sizes = [("llama", 5), ("mixtral", 5), ("mixtral", 1)]
    loops = [
        {"do": "loop", "name": f"{family}-{n}", "family": family, "batch_size": n, "microbatch_tokens": 40}
        for family, n in sizes
    ]
    found = together(
        two,
        {"do": "world", "name": "world"},
        *({**job, "folder": str(two / job["name"])} for job in loops),
        {"do": "train", "name": "lora", **asked(two, "lora", LORA)},
        {"do": "train", "name": "full", **asked(two, "full", FULL)},
    )
    check_world([f["world"] for f in found])
    alone(one, *({**job, "folder": str(one / job["name"])} for job in loops))
    for job in loops:
        assert [f[job["name"]] for f in found] == [{"equal": True}] * 2
        a, b = (load_file(side / job["name"] / "weights.safetensors") for side in (one, two))
        assert furthest(a, b) <= 1e-10, job["name"]
    for name, adapter in (("lora", LORA), ("full", FULL)):
        wanted = tunesmith.train(**asked(one, name, adapter))
        assert furthest(weights(one / name), weights(two / name)) <= 1e-5
        assert np.abs(losses(one / name) - losses(two / name)).max() <= 1e-5
        assert found[0][name] == found[1][name]
        for key in ("steps", "tokens", "scored_tokens"):
            assert found[0][name][key] == wanted[key]
        for metric, values in wanted["metrics"].items():
            assert found[0][name]["metrics"][metric] == pytest.approx(values, rel=1e-4), metric
        answers = [json.loads((side / name / "results.json").read_text())["samples"] for side in (one, two)]
        assert answers[0] == answers[1]
        assert any("2 processes train together" in said for said in found[0][f"{name} heard"])
        assert found[1][f"{name} heard"] == []  # the first alone speaks


def alone(folder: Path, *jobs: dict) -> None:
    """Do jobs in a process of its own: what they change in torch is not this one's."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    subprocess.run([sys.executable, DRIVER, str(file)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def check_world(found: list[dict]) -> None:
    """What each method of a World returned in each of two processes."""
    for each in found:
        assert each["sum"] == [[3, 3, 3], [[10, 10], [10, 10]], 1]
        assert each["sent"] == [[[0, 0]] * 3, True]
        assert each["most"] == [1, 0]
        assert each["gather"] == [{"rank": 0}, {"rank": 1}]
        assert each["first"] == "said by 0"
    assert found[0]["seed"] != found[1]["seed"]
    same = "process 1 of 2 has another rank than the first; give every process the same files."
    assert found[0]["refused"] == [
        "InputError: refused by 0", "InputError: process 1 of 2: refused by 1", f"InputError: {same}",
    ]  # fmt: skip
    assert found[1]["refused"] == [
        "SaidElsewhere: refused by 0", "SaidElsewhere: refused by 1", f"SaidElsewhere: {same}",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_processes_or_others(asked, tmp_path):
    """SIGTERM to either process: both end after the same step. Two go on to the same bits, with dropout; one and two interchange."""
    one = asked(tmp_path, "one", LORA)
    wanted = tunesmith.train(**one)
    alone(tmp_path, {"do": "train", "name": "a", "stop": [0, 4], **asked(tmp_path, "one-then-two", LORA)})
    found = together(
        tmp_path,
        {"do": "train", "name": "whole", **asked(tmp_path, "whole", DROPPED)},
        {"do": "train", "name": "cut", "stop": [1, 4], **asked(tmp_path, "cut", DROPPED)},
        {"do": "train", "name": "resumed", **asked(tmp_path, "cut", DROPPED, resume=True)},
        {"do": "train", "name": "two-then-one", "stop": [0, 4], **asked(tmp_path, "two-then-one", LORA)},
        {"do": "train", "name": "one-then-two", **asked(tmp_path, "one-then-two", LORA, resume=True)},
    )
    for each in found:
        assert each["cut"] == each["two-then-one"] == "interrupted by 15"
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    heard = []
    tunesmith.train(**asked(tmp_path, "two-then-one", LORA, resume=True, listeners=(heard.append,)))
    assert any("begun with 2 processes and goes on with 1" in e.get("message", "") for e in heard)
    assert any("begun with 1 process and goes on with 2" in said for said in found[0]["one-then-two heard"])
    for name in ("two-then-one", "one-then-two"):
        assert furthest(weights(tmp_path / "one"), weights(tmp_path / name)) <= 1e-5
        assert np.abs(losses(tmp_path / "one") - losses(tmp_path / name)).max() <= 1e-5
    assert found[0]["one-then-two"]["tokens"] == wanted["tokens"]


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_and_weights_that_come_apart(asked, tmp_path):
    """The first changes no result, and all pack smaller from there on; after the second nothing is saved any more."""
    found = together(
        tmp_path,
        {"do": "train", "name": "small", "room": [1, 100], **asked(tmp_path, "small", LORA)},
        {"do": "train", "name": "flipped", "flip": [1, 5], **asked(tmp_path, "flipped", LORA)},
    )
    tunesmith.train(**asked(tmp_path, "one", LORA))
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "small")) <= 1e-5
    said = next(s for s in found[0]["small heard"] if "memory ran out in another process" in s)
    state = json.loads((tmp_path / "small" / "checkpoints" / "step-8" / "state.json").read_text())
    assert f"with {state['progress']['microbatch_tokens']} tokens at most" in said
    for each in found:
        assert each["flipped"].startswith("step 6: the processes no longer hold the same weights")
    assert sorted(p.name for p in (tmp_path / "flipped" / "checkpoints").iterdir()) == ["step-0", "step-3"]
    assert run.state(tmp_path / "flipped") == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_dies_the_other_ends_and_the_run_can_be_resumed(asked, tmp_path, rank):
    file = tmp_path / "jobs.json"
    job = {"do": "train", "name": "run", "die": [rank, 5], **asked(tmp_path, "run", LORA)}
    file.write_text(json.dumps([job]))
    codes = [None, None]
    told = ended(launch([DRIVER, str(file)]), 120)
    codes[rank], codes[1 - rank] = -9, 1
    assert [code for code, _, _ in told] == codes, told
    assert "ProcessLost: another process of this run has ended" in told[1 - rank][2]
    assert run.state(tmp_path / "run") == ("running" if rank == 0 else "failed")
    tunesmith.train(**asked(tmp_path, "run", LORA, resume=True))
    tunesmith.train(**asked(tmp_path, "one", LORA))
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "run")) <= 1e-5


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tiny_folder, rows_file, tmp_path):
    """Every process ends with exit code 2; the first says why. What only another found, it says too."""
    data = shutil.copy(rows_file, tmp_path / "rows.jsonl")
    train = ["-m", "tunesmith", "train", "--model", str(tiny_folder), "--output", str(tmp_path / "run")]
    (code, out, err), other = ended(launch([*train, "--data", str(data), "--set", "train.max_length=5"]), 120)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "max_length 5" in err
    assert other == (2, "", "")
