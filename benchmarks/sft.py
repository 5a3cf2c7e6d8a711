"""SFT throughput beside the peers, one run: real (unpadded) tokens per second of stepping, contenders interleaved, medians.

    python benchmarks/sft.py [--shape 135m|starter|8b] [--adapter lora|full|dora|qlora] [--rounds 3] [--steps 8]
                             [--threads N] [--only NAME ...]

qlora: LoRA on a base in NF4 with double quantisation. Every contender trains on the same token rows (lengths drawn like Alpaca's,
answers scored) of the same random-weight model, each in a process of its own that reports the seconds of every optimizer step; the
first two steps are left out. The floor is the matrix products the step cannot do without, at the bf16 rate measured on the model's
own shapes by as many threads. Memory is compared at the same activation checkpointing: with tunesmith's own, or with
tunesmith-checkpointing's where the peer recomputes too. On a processor with AMX, ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 shows what one
without it would do.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path

from contenders import CHECKPOINTING, CONTENDERS
from shapes import SHAPES, draw_rows, gemm_rate, make_model, needed_flops


def child(name: str, folder: str, shape: str, adapter: str, steps: int) -> None:
    import torch

    rows = draw_rows(512, SHAPES[shape]["vocab_size"])
    tokens, seconds, overhead = CONTENDERS[name](folder, rows, shape, adapter, steps)
    rate = sum(tokens[2:]) / sum(seconds[2:])
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else own_peak()
    print("RESULT " + json.dumps({"rate": rate, "peak": peak, "overhead": overhead}))


def own_peak() -> int:
    """Return this process's peak resident memory in bytes (getrusage would give its parent's, where that was larger)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def measure(name: str, folder: str, args: argparse.Namespace) -> dict:
    """Run one contender in a process of its own and return what it reports."""
    options = ["--shape", args.shape, "--adapter", args.adapter, "--steps", str(args.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, "--child", name, folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(line[7:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--adapter", choices=("lora", "full", "dora", "qlora"), default="lora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.shape, args.adapter, args.steps)
        return
    if args.steps < 3:
        parser.error("--steps: at least 3, for the first two are left out")
    results: dict[str, list[dict]] = {name: [] for name in args.only}
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, args.shape)
        for number in range(args.rounds):
            rates.append(gemm_rate(args.shape, args.threads))
            for name in args.only:
                results[name].append(measure(name, folder, args))
                print(f"round {number + 1}  {name:<14} {results[name][-1]['rate']:9.1f} tok/s", file=sys.stderr)
    print(table(args, results, statistics.median(rates)))


def table(args: argparse.Namespace, results: dict[str, list[dict]], rate: float) -> str:
    """Return the results as Markdown: medians, ranges, ratios, shares of the limit, peak memory, versions."""
    rates = {name: statistics.median(r["rate"] for r in runs) for name, runs in results.items()}
    peaks = {name: statistics.median(r["peak"] for r in runs) for name, runs in results.items()}
    flops = needed_flops(args.shape, args.adapter, draw_rows(512, SHAPES[args.shape]["vocab_size"]))
    limit = rate / flops
    extra = ("bitsandbytes",) if args.adapter == "qlora" else ()
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "trl", "peft", *extra))
    lines = [
        f"{args.shape} {args.adapter} SFT, bf16, {date.today()}, {hardware()}, {versions}; "
        f"{args.rounds} rounds of {args.steps} steps, interleaved",
        f"limit {limit:.0f} tok/s: {flops / 1e9:.2f} GFLOP per token at {rate / 1e12:.2f} TFLOP/s, the bf16 rate of its own products",
        "",
        "| contender | real tokens/s (median, min to max) | tunesmith is | share of the limit | peak memory | tunesmith's memory is |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        every = [r["rate"] for r in runs]
        ratio = f"{rates['tunesmith'] / rates[name]:.2f}x" if "tunesmith" in rates else ""
        peak = peaks[name] / 2**30
        like = "tunesmith-checkpointing" if name in CHECKPOINTING else "tunesmith"
        less = f"{peaks[like] / peaks[name]:.2f}x" if like in peaks and not name.startswith("tunesmith") else ""
        span = f"{rates[name]:.0f} ({min(every):.0f} to {max(every):.0f})"
        lines.append(f"| {name} | {span} | {ratio} | {rates[name] / limit:.0%} | {peak:.2f} GiB | {less} |")
    overheads = [r["overhead"] for r in results.get("tunesmith", []) if r["overhead"] is not None]
    if overheads:
        lines += [
            "",
            f"tunesmith's loop (a step without forward, backward and optimizer): {statistics.median(overheads):.1%} of the time",
        ]
    return "\n".join(lines)


def hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return f"{os.cpu_count()} cores of {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}" + (
        f", held to {isa}" if isa else ""
    )


if __name__ == "__main__":
    main()
