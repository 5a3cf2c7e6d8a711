"""Data beside the peers and against its own goals: inspect, deduplicate, render, memory over a growing file, start of a second run.

    python benchmarks/data.py [--only inspect dedup render memory start] [--rounds 3] [--rows FILE] [--gigabytes 2] [--write]

The rows are generated (rows.py): Alpaca's fields and lengths, 4% exact and 4% near duplicates planted. --rows takes real ones
instead (memory aside). Everything runs in a process of its own, contenders interleaved, after a few rows that bring the imports.
Seconds are the clock's; beside them the processor's, of all cores, which do not grow when a machine is shared. TRL is given its
rows in memory, prompt and completion as messages; tunesmith reads them from the file, checks and converts them as well.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rows import generated, write_rows
from sft import hardware, own_peak

COUNTS = {"inspect": 52_000, "dedup": 50_000, "render": 10_000, "start": 52_000}
GROWTH = (1 / 16, 1 / 4, 1)  # of --gigabytes
RENDERED = ("tunesmith", "trl", "trl-2")
MAX_LENGTH = 1024


# -- what is measured, each in a process of its own; every one returns what it found beside time and memory


def inspect_rows(file: str, folder: str) -> dict[str, Any]:
    from tunesmith.data.inspect import inspect

    with clocked() as spent:
        found = inspect(file, model=None)
    return {**spent, "rows": sum(s["rows"] for s in found["sources"])}


def exact(file: str, folder: str) -> dict[str, Any]:
    return prepare_rows(file, folder, ("exact_duplicates",))


def dedup(file: str, folder: str) -> dict[str, Any]:
    return prepare_rows(file, folder, ("exact_duplicates", "near_duplicates"))


def prepare_rows(file: str, folder: str, on: tuple[str, ...]) -> dict[str, Any]:
    """Prepare with the steps `on` and no others."""
    from tunesmith import registry
    from tunesmith.data.prepare import run

    section = {name: name in on for name in registry.names("data.steps")}
    with tempfile.TemporaryDirectory(dir=folder) as output, clocked() as spent:
        report = run(file, section, Path(output) / "set")
    steps = {step["name"]: {"dropped": step["dropped"], "seconds": step["seconds"]} for step in report["steps"]}
    return {**spent, "rows": report["rows"]["read"], "steps": steps}


def tunesmith(file: str, folder: str) -> dict[str, Any]:
    from tunesmith.data.render import render
    from tunesmith.data.sources import load
    from tunesmith.model.loading import STARTER, ModelSource, load_tokenizer

    tokenizer, _ = load_tokenizer(ModelSource(str(STARTER)))
    tokenizer("warm")
    with clocked() as spent:
        examples, _ = render(load(file).records, tokenizer, MAX_LENGTH)
    return {**spent, "tokens": len(examples.ids), "scored": int(examples.scored.sum())}


def trl(file: str, folder: str, processes: int | None = None) -> dict[str, Any]:
    from datasets import Dataset, disable_caching, disable_progress_bars
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from tunesmith.data.sources import load
    from tunesmith.model.loading import STARTER

    disable_caching()
    disable_progress_bars()
    chats = [r.messages for r in load(file).records]
    data = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in chats])
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **small))
    prepare, found = SFTTrainer._prepare_dataset, {}

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clocked() as spent:
            made = prepare(*args, **kwargs)
        labels = np.concatenate(list(made["labels"]))
        found.update(spent, tokens=len(labels), scored=int((labels != -100).sum()))
        return made

    SFTTrainer._prepare_dataset = timed
    options = SFTConfig(
        output_dir=folder, max_length=MAX_LENGTH, dataset_num_proc=processes, use_cpu=True, report_to=[], bf16=False
    )
    SFTTrainer(model, args=options, train_dataset=data, processing_class=tokenizer)
    return found


def trl_2(file: str, folder: str) -> dict[str, Any]:
    return trl(file, folder, 2)


def start(file: str, folder: str) -> dict[str, Any]:
    """A second start: all of training's beginning but the imports and the weights. The first, in another process, filled the cache."""
    from tunesmith import config
    from tunesmith.training.prepare import Prepared
    from tunesmith.training.stages import _fingerprint

    with clocked() as spent:
        run = Prepared(config.parse({"data": file, "train": {"device": "cpu"}}))
        _fingerprint(run.examples, run.rows(0), run.difficulty)
    return {**spent, "rows": len(run.train_records)}


MEASURED: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "inspect": inspect_rows, "dedup": dedup, "exact": exact, "tunesmith": tunesmith, "trl": trl, "trl-2": trl_2, "start": start,
}  # fmt: skip


class clocked:  # noqa: N801 (reads as a statement)
    """Time a block: {"seconds": by the clock, "cpu": of this process and its children}."""

    def __enter__(self) -> dict[str, Any]:
        self.spent: dict[str, Any] = {}
        self.began = time.perf_counter(), processor()
        return self.spent

    def __exit__(self, *_: object) -> None:
        self.spent.update(seconds=time.perf_counter() - self.began[0], cpu=processor() - self.began[1])


def processor() -> float:
    """Return the seconds of this process and its children: those it has waited for, and those that live (the templates' one)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(u.ru_utime + u.ru_stime for u in used) + sum(t.user + t.system for t in living)


def measure(name: str, file: str, folder: str) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it reports."""
    environment = {
        **os.environ,
        "TUNESMITH_CACHE": f"{folder}/cache",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HOME": f"{folder}/hf",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, file, folder], capture_output=True, text=True, env=environment
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(line[7:])
    print(
        f"{name:<10} {found['seconds']:8.2f} s  {found['cpu']:8.2f} cpu s  {found['peak'] / 2**20:7.0f} MiB",
        file=sys.stderr,
    )
    return found


def child(name: str, file: str, folder: str) -> None:
    few = Path(folder) / "few.jsonl"
    write_rows(few, generated(200))
    MEASURED[name](str(few), folder)  # what is imported on the way is
    found = MEASURED[name](file, folder)
    print("RESULT " + json.dumps({**found, "peak": own_peak()}))


# -- the tables


def inspect_table(args: argparse.Namespace, folder: str) -> list[str]:
    file = rows_of(args, "inspect", folder)
    runs = [measure("inspect", file, folder) for _ in range(args.rounds)]
    rate = statistics.median(r["rows"] / r["seconds"] for r in runs)
    return [
        f"inspect: {runs[0]['rows']:,} rows without a tokenizer, {rate:,.0f} rows/s{spread(runs)}; goal 20,000: {met(rate >= 20_000)}"
    ]


def dedup_table(args: argparse.Namespace, folder: str) -> list[str]:
    file = rows_of(args, "dedup", folder)
    runs = [measure("dedup", file, folder) for _ in range(args.rounds)]
    seconds = statistics.median(sum(s["seconds"] for s in r["steps"].values()) for r in runs)
    whole = statistics.median(r["seconds"] for r in runs)
    dropped = ", ".join(f"{name} dropped {step['dropped']:,}" for name, step in runs[0]["steps"].items())
    planted = "" if args.rows else " (about 4% of each were planted)"
    return [
        f"exact and near duplicates: {runs[0]['rows']:,} rows, {seconds:.1f} s, {whole:.1f} s with reading and writing{spread(runs)}; "
        f"goal 15: {met(seconds < 15)}. {dropped}{planted}"
    ]


def render_table(args: argparse.Namespace, folder: str) -> list[str]:
    file = rows_of(args, "render", folder)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RENDERED}
    for _ in range(args.rounds):
        for name in RENDERED:
            results[name].append(measure(name, file, folder))
    own = statistics.median(r["seconds"] for r in results["tunesmith"])
    own_cpu = statistics.median(r["cpu"] for r in results["tunesmith"])
    lines = [
        f"rows to tokens with what is scored, at most {MAX_LENGTH} tokens, the starter's tokenizer and template; goal 3x:",
        "",
        "| contender | s (median, min to max) | tunesmith is | cpu s | tunesmith is | tokens, scored | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        every = [r["seconds"] for r in runs]
        seconds, cpu = statistics.median(every), statistics.median(r["cpu"] for r in runs)
        peak = statistics.median(r["peak"] for r in runs) / 2**20
        lines.append(
            f"| {name} | {seconds:.2f} ({min(every):.2f} to {max(every):.2f}) | {seconds / own:.1f}x | {cpu:.2f} | {cpu / own_cpu:.1f}x "
            f"| {runs[0]['tokens']:,}, {runs[0]['scored']:,} | {peak:.0f} MiB |"
        )
    return lines


def memory_table(args: argparse.Namespace, folder: str) -> list[str]:
    lines = [
        "peak memory over a growing file, MiB (inspect without a tokenizer); goal: flat:",
        "",
        "| file | rows | inspect | prepare: exact duplicates | prepare: near ones too |",
        "|---|---|---|---|---|",
    ]
    for share in GROWTH:
        file = Path(folder) / "growing.jsonl"
        rows = write_rows(file, generated(10**9), share * args.gigabytes * 1e9)
        peaks = [measure(name, str(file), folder)["peak"] / 2**20 for name in ("inspect", "exact", "dedup")]
        lines.append(f"| {file.stat().st_size / 1e9:.2f} GB | {rows:,} | {' | '.join(f'{p:.0f}' for p in peaks)} |")
        file.unlink()
    return lines


def start_table(args: argparse.Namespace, folder: str) -> list[str]:
    file = rows_of(args, "start", folder)
    first, *runs = [measure("start", file, folder) for _ in range(args.rounds + 1)]
    seconds = statistics.median(r["seconds"] for r in runs)
    return [
        f"start of training on a cached set, without imports and weights: {runs[0]['rows']:,} rows, {seconds:.2f} s{spread(runs)}, "
        f"the first time {first['seconds']:.2f} s; goal 3: {met(seconds < 3)}"
    ]


TABLES = {
    "inspect": inspect_table, "dedup": dedup_table, "render": render_table, "memory": memory_table, "start": start_table,
}  # fmt: skip


def rows_of(args: argparse.Namespace, name: str, folder: str) -> str:
    """Return the file of rows that a part is measured on: the user's, or so many generated ones."""
    if args.rows:
        return str(Path(args.rows).resolve())
    file = Path(folder) / f"{name}.jsonl"
    write_rows(file, generated(round(COUNTS[name] * args.scale)))
    return str(file)


def spread(runs: list[dict[str, Any]]) -> str:
    every, cpu = [r["seconds"] for r in runs], statistics.median(r["cpu"] for r in runs)
    return f" ({min(every):.2f} to {max(every):.2f} s, {cpu:.2f} cpu s, peak {max(r['peak'] for r in runs) / 2**20:.0f} MiB)"


def met(is_so: bool) -> str:
    return "met" if is_so else "not met"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", help="a file of real rows (chats) instead of generated ones")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the number of generated rows")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    versions = ", ".join(
        f"{n} {metadata.version(n)}" for n in ("transformers", "tokenizers", "trl", "datasets", "rensa")
    )
    lines = [f"data, {date.today()}, {hardware()}, {versions}; {args.rounds} rounds, interleaved"]
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            lines += ["", *TABLES[name](args, folder)]
    print("\n".join(lines))
    if args.write:
        options = " ".join(sys.argv[1:])
        file = Path(__file__).parent / "results" / f"{date.today()}-data-cpu.md"
        file.write_text("\n".join(["# Data on a CPU", "", f"`python benchmarks/data.py {options}`", "", *lines]) + "\n")


if __name__ == "__main__":
    main()
