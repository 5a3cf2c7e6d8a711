"""One of two processes that train on the same rows: `python pairs_driver.py JOBS.json`, launched with torchrun's variables set.

Every job is {"folder", "section", "examples"}: ten float64 steps, whose weights the first process leaves in the folder. "room": the
tokens of a batch that the second process has memory for where gradients are asked.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contextlib import nullcontext

import torch
from safetensors.torch import save_file

from builders import random_answers, random_verdicts, tiny_model
from steppers import train
from tunesmith.model.policy import Policy
from tunesmith.run import Elsewhere, open_run
from tunesmith.training import parallel


def pairs():
    """Return 44 pairs: the last step has fewer rows than the others."""
    return _with_reference(random_answers(44, seed=6))


def verdicts():
    """Return 44 verdicts, each with a mismatched answer."""
    return _with_reference(random_verdicts(44, seed=6))


def alone():
    """Return 44 verdicts."""
    return _with_reference(random_verdicts(44, seed=6, mismatched=False))


def _with_reference(examples):
    g = torch.Generator().manual_seed(0)
    reference = -4.5 + torch.randn(int(examples.scored.sum()), generator=g)
    examples.constants["reference"] = reference.numpy()
    return examples


FORWARD = Policy.forward


def limit(room):
    def forward(self, batch):
        if torch.is_grad_enabled() and self.training and os.environ["RANK"] == "1" and len(batch.ids) > room:
            raise MemoryError
        return FORWARD(self, batch)

    Policy.forward = forward


def main(file):
    for job in json.loads(file.read_text()):
        folder, room = Path(job["folder"]), job.get("room", 10_000)
        limit(room)
        with parallel.joined() as world:
            with open_run(folder) if world.rank == 0 else nullcontext(Elsewhere(folder)) as run:
                examples = globals()[job.get("examples", "pairs")]()
                tokens = 200 if room < 200 else 100
                loop = train(run, tiny_model(dtype=torch.float64), examples, job["section"], 10, tokens, world=world)
            if world.rank == 0:
                save_file({n: m.detach() for n, m in loop.masters.masters.items()}, folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
