"""Measure the reward models and best-of-n of this recipe and print Markdown tables, each number the mean over the folders (and its range).

    python recipes/reward-best-of-n/measure.py FOLDER... [--data runs/preferences/data]

FOLDER holds the runs of one seed, as all.sh leaves them. Of the eight sampled answers to a held-out question the reward model takes
the best of n; the starter's judge, which the reward model never saw, says how much that one is liked. Best-of-n for n < 8 is the mean
over all ways to take n of the eight.
"""

import argparse
import json
from math import comb
from pathlib import Path
from typing import Any

from tunesmith.starter.judge import SPOKEN, judge


def best_of(marks: list[float], n: int) -> float:
    """Return the mark of the best of n of the answers, their marks in the reward model's order (the best first)."""
    size = len(marks)
    return sum(comb(size - 1 - i, n - 1) * mark for i, mark in enumerate(marks)) / comb(size, n)


def judged(folder: Path, rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return the judge's mean mark of best-of-n, from 0 to 1, of the questions whose answers have a voice."""
    asked = json.loads((folder / "best-of.json").read_text())["answers"]
    marks = [
        [judge(one["answer"], row["check"], row["category"]) for one in answer["candidates"]]
        for answer, row in zip(asked, rows, strict=True)
        if row["category"] in SPOKEN
    ]
    return {n: sum(best_of(own, n) for own in marks) / len(marks) for n in (1, 2, 4, 8)}


def cell(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("runs/preferences/data"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in (given.data / "asked.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [judged(folder, rows) for folder in given.folders]
    print("| answers sampled | judge's mean mark |\n|---|---|")
    for n in found[0]:
        print(f"| {n} | {cell([one[n] for one in found])} |")
    print("\n| reward model | |\n|---|---|")
    results = [json.loads((folder / "reward" / "results.json").read_text()) for folder in given.folders]
    for name in ("preference_accuracy", "calibration_error", "length_bias"):
        print(f"| {name} | {cell([one['after']['metrics'][name]['value'] for one in results])} |")
    print(f"| seconds | {cell([one['train']['seconds'] for one in results])} |")


if __name__ == "__main__":
    main()
