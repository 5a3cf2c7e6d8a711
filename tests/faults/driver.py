"""Kills runs and takes them up again: `python driver.py FOLDER KIND HOW SEED` (KIND lora or full; HOW sample, all or at-random).

FOLDER holds models (model-KIND) and rows (a.jsonl, b.jsonl). One run is left alone; it notes each moment at which something is
written, synced or renamed and how long it took. Every other is killed by SIGKILL at one of those moments, or after
a random time, and resumed. Each run is a forked child of this process, which has imported everything and started no thread.
Prints JSON: {"points": how many, "different": {point: what is not equal to the uninterrupted run's}, "from": steps resumed from}.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from kills import dies_at, forked, wait

import tunesmith

STEPS = 4
RANDOM = 10  # runs killed at random


def config(root: Path, kind: str, learning_rate: float = 0.01, **train: object) -> dict:
    """Dropout, micro-batches smaller than the step, two weighted sources, a checkpoint at every step; `train` is laid over it."""
    return {
        "model": str(root / f"model-{kind}"),
        "data": [{"path": str(root / "a.jsonl"), "weight": 2}, {"path": str(root / "b.jsonl")}],
        "validation": {"fraction": 0.1},
        "adapter": {"name": "lora", "r": 2, "dropout": 0.2} if kind == "lora" else {"name": "full"},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate},
        "train": {
            "max_steps": STEPS, "batch_size": 6, "microbatch_tokens": 100, "checkpoint_every": 1, "evaluate_every": 2,
            "keep_last": 2, "dtype": "float32" if kind == "full" else "bfloat16", "device": "cpu", **train,
        },
    }  # fmt: skip


def child(root: Path, kind: str, name: str, resume: bool, at=None) -> int:
    """Start a run in a child and return its process number."""
    settings = config(root, kind)
    return forked(lambda: tunesmith.train(settings, output=str(root / name), resume=resume), at)


def content(folder: Path, steps: int = STEPS) -> dict[str, str]:
    """Return the SHA-256 of all that must not differ: the last checkpoint's tensors (weights, optimizer, random states) and the result."""
    files = [*(folder / "checkpoints" / f"step-{steps}").glob("*.safetensors"), *(folder / "result").glob("*")]
    return {
        f"{p.parent.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(files)
        if p.name != "README.md"
    }


def chosen(moments: list[str], how: str, seed: int) -> list[int]:
    """Return the moments to die at: all of one save in the middle and all after the last, the first of each kind elsewhere.

    Or a sample of these.
    """
    middle = moments.index(f"rename step-{STEPS // 2}")
    begin = max(i for i in range(middle) if moments[i].startswith("rename step-")) + 2
    save = list(range(begin, middle + 3))  # the folder's sync after the rename, and the next save's first write
    last = moments.index(f"rename step-{STEPS}")
    others = [i for i, what in enumerate(moments) if i not in save and (moments.index(what) == i or i > last)]
    if how == "all":
        return [*save, *others]
    return [save[-2], *random.Random(seed).sample(save, 4), random.Random(seed).choice(others)]


def main(root: Path, kind: str, how: str, seed: int) -> dict:
    import peft  # noqa: F401 (once, for all children)
    import transformers.models.llama.modeling_llama  # noqa: F401

    from tunesmith.training import checkpoint, stages  # noqa: F401

    checkpoint.PIECE = checkpoint.SMALL = 20_000  # several writes to a file of tensors
    noted = root / "moments.txt"
    log = noted.open("w", buffering=1)
    began = time.monotonic()
    assert wait(child(root, kind, "whole", False, lambda what: log.write(what + "\n"))) == 0
    took = time.monotonic() - began
    moments = noted.read_text().splitlines()
    wanted = content(root / "whole")
    rng = random.Random(seed)
    points = [rng.random() * took for _ in range(RANDOM)] if how == "at-random" else chosen(moments, how, seed)
    different, resumed_from = {}, []
    for n, point in enumerate(points):
        name = f"killed-{n}"
        process = child(root, kind, name, False, None if how == "at-random" else dies_at(point))
        if how == "at-random":
            time.sleep(point)
            os.kill(process, signal.SIGKILL)
        what = f"after {point:.2f} s" if how == "at-random" else f"{point}: {moments[point]}"
        ended = wait(process)
        again = wait(child(root, kind, name, True))
        found = content(root / name)
        killed = ended == -signal.SIGKILL or (how == "at-random" and ended == 0)  # faster than the first
        if not killed or again != 0 or found != wanted:
            unequal = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            different[what] = {"ended": ended, "resumed": again, "unequal": unequal}
        events = [json.loads(line) for line in (root / name / "events.jsonl").read_text().splitlines() if line]
        resumed_from.append([e["resumed_from"] for e in events if e["event"] == "start"][-1])
        shutil.rmtree(root / name)
    return {"points": len(points), "moments": len(moments), "different": different, "from": resumed_from}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))))
