"""One of several processes of a test: `python parallel_driver.py JOBS.json`, launched with torchrun's variables set.

Every job is {"do": a function below, ...its arguments}, and they are done in turn; each joins the other processes and leaves them.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import save_file

import tunesmith
from builders import random_examples, tiny_model
from tunesmith import run
from tunesmith.errors import GuardStop, InputError, Interrupted
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training import parallel
from tunesmith.training.loop import Loop
from tunesmith.training.objective import Objective
from tunesmith.training.objectives import sft
from tunesmith.training.optimizers.adamw import make as adamw
from tunesmith.training.plan import Plan

SPOKEN = {}  # what this process found, by job


def world(name: str) -> None:
    """Every method of a World, told in SPOKEN."""
    with parallel.joined() as w:
        parts = [
            torch.full((3,), w.rank + 1.0),
            torch.full((2, 2), 10.0 * w.rank, dtype=torch.float64),
            torch.tensor(w.rank),
        ]
        w.sum_([*parts, torch.zeros(0)])
        sent = [torch.full((2, 3), float(w.rank)).T, torch.tensor(w.rank == 0)]
        w.broadcast_(sent)
        refused = []
        for bad in (0, 1):
            try:
                w.together(lambda bad=bad: _refuse(w.rank) if w.rank == bad else None)
            except InputError as e:
                refused.append(f"{type(e).__name__}: {e}")
        try:
            w.same(w.rank, "another rank")
        except InputError as e:
            refused.append(f"{type(e).__name__}: {e}")
        SPOKEN[name] = {
            "sum": [p.tolist() for p in parts],
            "sent": [t.tolist() for t in sent],
            "most": w.most(w.rank, -w.rank),
            "gather": w.gather({"rank": w.rank}),
            "first": w.first(lambda: f"said by {w.rank}"),
            "refused": refused,
            "seed": w.seed(0, 0),
        }


def _refuse(rank: int) -> None:
    raise InputError(f"refused by {rank}")


def train(
    name: str,
    stop: list | None = None,
    die: list | None = None,
    flip: list | None = None,
    room: list | None = None,
    **arguments,
) -> None:
    """tunesmith.train; `stop` and `die`: [rank, step] at which that process is sent SIGTERM or SIGKILL.

    flip: [rank, step] at which one bit of that process's weights changes. room: [rank, tokens] it has memory for in training.
    """
    original, forward = Loop._step, Policy.forward

    def limited(self, batch):
        if room is not None and self.training and int(os.environ["RANK"]) == room[0] and len(batch.ids) > room[1]:
            raise MemoryError
        return forward(self, batch)

    def step(self, steps):
        original(self, steps)
        if flip == [self.world.rank, self.progress.step]:
            next(iter(self.masters.masters.values())).detach().view(torch.int32).view(-1)[0] ^= 1
        for asked, number in ((stop, signal.SIGTERM), (die, signal.SIGKILL)):
            if asked == [self.world.rank, self.progress.step]:
                os.kill(os.getpid(), number)

    Loop._step, Policy.forward = step, limited
    heard = []
    try:
        SPOKEN[name] = tunesmith.train(listeners=(heard.append,), **arguments)
    except Interrupted as e:
        SPOKEN[name] = f"interrupted by {e.number}"
    except GuardStop as e:
        SPOKEN[name] = str(e)
    finally:
        Loop._step, Policy.forward = original, forward
    SPOKEN[f"{name} heard"] = [e["message"] for e in heard if e["event"] == "notice"]


def loop(name: str, folder: str, family: str, batch_size: int, microbatch_tokens: int) -> None:
    """Six float64 steps of a tiny model over 26 rows; the weights go to folder/weights.safetensors."""
    with parallel.joined() as w:
        examples = random_examples(n=26, low=3, high=20)
        plan = Plan(
            steps=6, tokens_per_step=None, batch_size=batch_size, microbatch_tokens=microbatch_tokens, learning_rate=1e-2,
            schedule="cosine", warmup=2, clip_norm=1.0, seed=0, evaluate_every=100, checkpoint_every=100, keep_last=1,
            early_stopping=None,
        )  # fmt: skip
        changes = {"output_router_logits": True, "router_aux_loss_coef": 0.02} if family == "mixtral" else {}
        model = tiny_model(family, torch.float64, **changes)
        if family == "mixtral":
            model.set_experts_implementation("eager")  # the grouped products know no float64
        policy, _ = make_policy(model)
        with run.open_run(Path(folder)) if w.rank == 0 else _elsewhere(folder) as opened:
            made = Loop(
                opened, policy, Objective(sft.loss), examples, lambda _: np.arange(len(examples)), plan,
                lambda masters: adamw(masters, learning_rate=1e-2), dict, "data", w,
            )  # fmt: skip
            made.train()
        if w.rank == 0:
            save_file({n: m.detach() for n, m in made.masters.masters.items()}, Path(folder) / "weights.safetensors")
        SPOKEN[name] = {"equal": len(set(w.gather(parallel.checksum(made.masters.masters.values())))) == 1}


class _elsewhere:  # noqa: N801 (reads as a statement)
    def __init__(self, folder: str) -> None:
        self.run = run.Elsewhere(Path(folder))

    def __enter__(self) -> run.Run:
        return self.run

    def __exit__(self, *_: object) -> None: ...


def main(file: Path) -> None:
    for job in json.loads(file.read_text()):
        {"world": world, "train": train, "loop": loop}[job.pop("do")](**job)
    rank = os.environ.get("RANK", "0")
    file.with_name(f"{file.stem}-{rank}.json").write_text(json.dumps(SPOKEN))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
