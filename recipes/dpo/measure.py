"""Measure the runs of the preference recipes and print a Markdown table, each number the mean over the folders (and its range).

    python recipes/dpo/measure.py FOLDER... [--runs dpo kto] [--data runs/preferences/data]

FOLDER holds the runs of one seed, as all.sh leaves them. Every model answers the held-out questions greedily; the starter's judge
(tunesmith.starter.judge) sets its answers against those of the tuned model of the same seed. Win rate: of the questions whose answers
have a voice, a tie counting half; exact match: of all ten families, by their rules, which do not see the voice.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tunesmith.data.sources import load
from tunesmith.evaluation.evaluator import READS, evaluate_records
from tunesmith.model import inference
from tunesmith.model.policy import make_policy
from tunesmith.starter.judge import SPOKEN, compare, judge

COLUMNS = {
    "accuracy": "preference accuracy, %", "win_rate": "win rate over SFT, %", "wins": "wins", "losses": "losses",
    "liked": "liked wholly, %", "exact": "exact match, %", "seconds": "seconds",
}  # fmt: skip


def answers(model: Path, records: list[Any]) -> tuple[list[str], float]:
    """Return the model's greedy answers, and the share that obey their rules."""
    checked = inference.check(str(model))
    policy, _ = make_policy(checked.load())
    found = evaluate_records(policy, checked.tokenizer, records, [{"name": "rule"}])
    return [item.answer or "" for item in found.items], found.metrics["rule"]["value"]


def measured(folder: Path, run: str, records: list[Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the numbers of one run, shares of 1."""
    said, exact = answers(folder / run, records)
    tuned, _ = answers(folder / "sft", records) if run != "sft" else (said, exact)
    spoken = [i for i, row in enumerate(rows) if row["category"] in SPOKEN]
    ours, theirs = ([judge(list_[i], rows[i]["check"], rows[i]["category"]) for i in spoken] for list_ in (said, tuned))
    results = json.loads((folder / run / "results.json").read_text())
    out = compare(ours, theirs) if run != "sft" else {}
    out |= {"exact": exact, "liked": sum(mark == 1 for mark in ours) / len(ours)}
    metrics = results["after"]["metrics"]
    if found := metrics.get("preference_accuracy") or metrics.get("verdict_accuracy"):
        out["accuracy"] = found["value"]
    return out | {"seconds": results["train"]["seconds"]}


def cell(runs: list[dict[str, float]], key: str) -> str:
    times = 1 if key == "seconds" else 100
    values = [f"{times * run[key]:.{0 if key == 'seconds' else 1}f}" for run in runs if key in run]
    if not values:
        return ""
    mean = times * sum(run[key] for run in runs if key in run) / len(values)
    low, high = min(values, key=float), max(values, key=float)
    shown = f"{mean:.{0 if key == 'seconds' else 1}f}"
    return shown if low == high else f"{shown} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--runs", nargs="+", default=["dpo"])
    parser.add_argument("--data", type=Path, default=Path("runs/preferences/data"))
    given = parser.parse_args()
    file = given.data / "asked.jsonl"
    records = load(str(file), READS).records
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    print(f"| run | {' | '.join(COLUMNS.values())} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for run in ["sft", *given.runs]:
        found = [measured(folder, run, records, rows) for folder in given.folders if (folder / run).is_dir()]
        if found:
            print(f"| {run} | {' | '.join(cell(found, key) for key in COLUMNS)} |")


if __name__ == "__main__":
    main()
