"""Every way of fine-tuning on the starter's instructions, at its recommended settings: what it learns, and what it costs.

    python benchmarks/adapters.py [--only lora dora ...] [--seeds 3] [--jobs 2] [--rows 4000] [--epochs 3] [--output FILE]

Each run is a process of its own with one thread; `--jobs` of them at a time. Nothing is set but the method, the data, the number
of epochs and the seed: ranks, rates and sizes are what a run takes that names the method only. Prints a Markdown table: medians over
seeds (and the range of exact match), CPU seconds of the whole run (loading, training, answering 400 prompts), peak memory of the
process, bytes of the weights in result/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

QUANTISED = {"qlora nf4": "nf4", "qlora fp4": "fp4", "qlora int8": "int8"}
Found = dict[str, Any]


def settings(method: str) -> dict[str, Any]:
    """Return the sections of a run file that say the method, and nothing else."""
    if method in QUANTISED:
        return {"model": {"path": "starter", "quantize": QUANTISED[method]}, "adapter": {"name": "lora"}}
    return {"model": "starter", "adapter": {"name": method}}


def one(method: str, seed: int, data: str, rows: int, epochs: int) -> Found:
    """Train and measure in this process."""
    import time

    import torch

    from tunesmith.training.api import train

    torch.set_num_threads(1)
    folder = Path(data)
    with tempfile.TemporaryDirectory() as output:
        began = time.process_time()
        config = {
            **settings(method), "data": f"{folder / 'train.jsonl'}[:{rows}]", "validation": {"path": str(folder / "heldout.jsonl")},
            "train": {"epochs": epochs, "seed": seed, "schedule": "cosine", "tokens_per_step": 2048},
            "evaluate": ["exact_match", "rule"], "output": f"{output}/run",
        }  # fmt: skip
        result = train(config)
        events = [json.loads(line) for line in Path(output, "run", "events.jsonl").read_text().splitlines()]
        start = next(e for e in events if e["event"] == "start")
        rate = next((e["value"] for e in events if e.get("key") == "optimizer.learning_rate"), None)
        weights = sum(f.stat().st_size for f in Path(result["result"]).glob("*.safetensors"))
        return {
            "exact": result["metrics"]["exact_match"]["value"],
            "rule": result["metrics"]["rule/families"]["value"],
            "loss": result["metrics"]["validation_loss"]["value"],
            "trained": start["trained_parameters"],
            "seconds": result["seconds"],
            "cpu": time.process_time() - began,
            "memory": result["peak_memory_bytes"],
            "bytes": weights,
            "rate": rate,
        }


def measured(method: str, seed: int, arguments: argparse.Namespace, data: str) -> Found:
    call = [sys.executable, __file__, "--one", method, "--seed", str(seed), "--data", data]
    call += ["--rows", str(arguments.rows), "--epochs", str(arguments.epochs)]
    done = subprocess.run(call, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"), check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        print(f"{method}, seed {seed}: {last}", file=sys.stderr)
        return {}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    print(f"{method}, seed {seed}: exact match {found['exact']:.1%}, {found['seconds']:.0f} s", file=sys.stderr)
    return found


def row(method: str, runs: list[Found]) -> str:
    def median(key: str) -> float:
        return statistics.median(r[key] for r in runs)

    exact = sorted(100 * r["exact"] for r in runs)
    low_high = f" ({exact[0]:.1f} to {exact[-1]:.1f})" if len(exact) > 1 else ""
    return (
        f"| `{method}` | {statistics.median(exact):.1f}{low_high} | {100 * median('rule'):.1f} | {median('loss'):.3f} | "
        f"{median('trained'):,.0f} | {median('rate'):g} | {median('cpu'):.0f} | {median('memory') / 2**20:.0f} | "
        f"{median('bytes') / 1e6:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output")
    for hidden in ("--one", "--data"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.seed, arguments.data, arguments.rows, arguments.epochs)))
        return
    from tunesmith import registry, starter

    methods = arguments.only or [*registry.names("model.adapters"), *QUANTISED]
    with tempfile.TemporaryDirectory() as data, ThreadPoolExecutor(arguments.jobs) as pool:
        starter.write_data(Path(data))
        calls = {(m, s): pool.submit(measured, m, s, arguments, data) for m in methods for s in range(arguments.seeds)}
        found = {m: [r for s in range(arguments.seeds) if (r := calls[m, s].result())] for m in methods}
    import peft
    import torch
    import transformers

    best_first = sorted(found.items(), key=lambda x: -statistics.median([r["exact"] for r in x[1]] or [0]))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    amount = f"{arguments.rows} rows, {arguments.epochs} epochs, {arguments.seeds} seeds"
    lines = [
        f"{date.today()}; {versions}; {amount}, one thread a run, {arguments.jobs} runs at a time",
        "",
        "| method | exact match, % | rule, mean of families, % | validation loss | trained parameters | learning rate | CPU seconds "
        "| peak MiB | result, MB |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(m, runs) for m, runs in best_first if runs),
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
