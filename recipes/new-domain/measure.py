"""Measure the runs of this recipe and print a Markdown table, each number the mean over the folders (and its range).

    python recipes/new-domain/measure.py FOLDER... [--data runs/new-domain/data]

FOLDER holds the runs of one seed, as all.sh leaves them. General text is measured in bits per byte, the summed -log2 p of its tokens
over its bytes of UTF-8: a perplexity per token would not compare vocabularies that cut a text differently.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from tunesmith.data.sources import load
from tunesmith.evaluation.evaluator import READS, evaluate_records
from tunesmith.model import inference
from tunesmith.model.policy import make_policy

PRETRAINED = ["pretrain", "pretrain-pieces", "pretrain-kl", "pretrain-mixed"]
MODELS = ["starter", *PRETRAINED, "sft-alone", *(f"sft-after-{name}" for name in PRETRAINED)]


def bits_per_byte(items: list[Any]) -> float:
    """Return the texts' summed -log2 p over their bytes."""
    texts = [item.record.text for item in items]
    return float(sum(item.nll for item in items) / math.log(2) / sum(len(t.encode()) for t in texts))


def measured(model: str, data: Path) -> dict[str, float]:
    """Return bits per byte of general text, and of a tuned model the shares of right answers."""
    checked = inference.check(model)
    policy, _ = make_policy(checked.load())

    def found(file: str, metric: str) -> Any:
        records = load(str(data / file), READS).records
        return evaluate_records(policy, checked.tokenizer, records, [{"name": metric}])

    out = {"general": bits_per_byte(found("general.jsonl", "perplexity").items)}
    if "sft" in Path(model).name:
        out["asked"] = found("asked.jsonl", "exact_match").metrics["exact_match"]["value"]
        out["heldout"] = found("heldout.jsonl", "rule").metrics["rule/families"]["value"]
    results = Path(model) / "results.json"
    if results.is_file():
        out["seconds"] = json.loads(results.read_text())["train"]["seconds"]
    return out


def cell(runs: list[dict[str, float]], key: str, form: str, times: float = 1) -> str:
    values = [times * run[key] for run in runs if key in run]
    if not values:
        return ""
    mean = format(sum(values) / len(values), form)
    low, high = format(min(values), form), format(max(values), form)
    return mean if low == high else f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("runs/new-domain/data"))
    given = parser.parse_args()
    print(
        "| model | words asked about, exact match % | held-out instructions, % | general text, bits per byte | seconds |"
    )
    print("|---|---|---|---|---|")
    for name in MODELS:
        places = ["starter"] if name == "starter" else [str(f / name) for f in given.folders if (f / name).is_dir()]
        runs = [measured(place, given.data) for place in places]
        if runs:
            asked, heldout = cell(runs, "asked", ".1f", 100), cell(runs, "heldout", ".1f", 100)
            print(f"| {name} | {asked} | {heldout} | {cell(runs, 'general', '.3f')} | {cell(runs, 'seconds', '.0f')} |")


if __name__ == "__main__":
    main()
