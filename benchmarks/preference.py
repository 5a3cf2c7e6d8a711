"""DPO and reward models beside TRL, one run: tokens per second of stepping, contenders interleaved, medians.

    python benchmarks/preference.py [--shape 135m|starter|tiny] [--rounds 3] [--steps 6] [--threads N] [--only CASE ...]

Cases: dpo and reward, with real lengths; and dpo4, DPO with prompts four times as long as their answers, by tunesmith alone, with
prompts run once and run for each answer. LoRA, r = 16, bf16, eight pairs a step. Tokens are those of a pair's two sequences, without
padding, the prompt in both, however often it is run. Every contender is a process of its own that reports the seconds of every optimizer
step; the first two are left out. DPO's reference log-probs are found before the first step in all of them (their seconds are told; TRL's
with the making of its trainer). The floor is what the step cannot do without, at the bf16 rate measured on the model's own products.
Memory is compared at the same activation checkpointing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata

from pairs import REAL, draw_pairs, needed_flops
from preferring import CHECKPOINTING, CONTENDERS, PAIRS
from sft import hardware, own_peak
from shapes import SHAPES, gemm_rate, make_model

CASES = {"dpo": tuple(CONTENDERS), "reward": tuple(CONTENDERS), "dpo4": ("tunesmith", "tunesmith-unshared")}
Results = dict[str, list[dict]]


def drawn(case: str, args: argparse.Namespace) -> list:
    return draw_pairs(PAIRS * args.steps, args.shape, 4.0 if case == "dpo4" else None)


def child(case: str, name: str, folder: str, args: argparse.Namespace) -> None:
    import torch

    found = CONTENDERS[name](folder, drawn(case, args), args.steps, case == "reward")
    rate = sum(found.tokens[2:]) / sum(found.seconds[2:])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else own_peak()
    print("RESULT " + json.dumps({"rate": rate, "peak": peak, "reference": found.reference}))


def measure(case: str, name: str, folder: str, args: argparse.Namespace) -> dict:
    """Run one contender in a process of its own and return what it reports."""
    options = ["--shape", args.shape, "--steps", str(args.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, "--child", case, name, folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{case} by {name} failed:\n{done.stderr[-3000:]}")
    return json.loads(line[7:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args)
        return
    if args.steps < 3:
        parser.error("--steps: at least 3, for the first two are left out")
    results: dict[str, Results] = {c: {n: [] for n in CASES[c] if n in args.contenders} for c in args.only}
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, args.shape)
        for number in range(args.rounds):
            rates.append(gemm_rate(args.shape, args.threads))
            for case, name in ((c, n) for c, names in results.items() for n in names):
                results[case][name].append(measure(case, name, folder, args))
                print(
                    f"round {number + 1}  {case} {name:<24} {results[case][name][-1]['rate']:9.1f} tok/s",
                    file=sys.stderr,
                )
    lengths = "lengths of dpo_en" if REAL.is_file() else "drawn lengths"
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "trl", "peft"))
    print(
        f"{args.shape} LoRA r16, bf16, {PAIRS} pairs a step, {lengths}, {date.today()}, {hardware()}, {args.threads} threads, {versions}; "
        f"{args.rounds} rounds of {args.steps} steps, interleaved"
    )
    for case, found in results.items():
        print(f"\n{table(case, found, statistics.median(rates), args)}")


def table(case: str, results: Results, rate: float, args: argparse.Namespace) -> str:
    """Return a case's results as Markdown: medians, ranges, ratios, share of the limit, peak memory, the reference's seconds."""
    rates = {name: statistics.median(r["rate"] for r in runs) for name, runs in results.items()}
    peaks = {name: statistics.median(r["peak"] for r in runs) for name, runs in results.items()}
    flops = needed_flops(args.shape, drawn(case, args), head=case != "reward")
    limit = rate / flops
    lines = [
        f"{case}: limit {limit:.0f} tok/s: {flops / 1e9:.2f} GFLOP per token at {rate / 1e12:.2f} TFLOP/s, prompts run once",
        "",
        "| contender | tokens/s (median, min to max) | tunesmith is | share of the limit | peak memory | tunesmith's memory is "
        "| reference, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        every = [r["rate"] for r in runs]
        ratio = f"{rates['tunesmith'] / rates[name]:.2f}x" if "tunesmith" in rates else ""
        like = "tunesmith-checkpointing" if name in CHECKPOINTING else "tunesmith"
        less = f"{peaks[like] / peaks[name]:.2f}x" if like in peaks and not name.startswith("tunesmith") else ""
        span = f"{rates[name]:.0f} ({min(every):.0f} to {max(every):.0f})"
        peak, reference = f"{peaks[name] / 2**30:.2f} GiB", statistics.median(r["reference"] for r in runs)
        lines.append(
            f"| {name} | {span} | {ratio} | {rates[name] / limit:.0%} | {peak} | {less} | {f'{reference:.1f}' if reference else ''} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
