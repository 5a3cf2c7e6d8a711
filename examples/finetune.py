"""Fine-tune the built-in model on rows this program writes itself, measure it on names it has not seen, and ask it something.

    python examples/finetune.py [--model starter] [--output runs/greetings]

The folder named by --output must be new or empty: a run never writes over another one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tunesmith

TIMES = ("morning", "day", "evening", "night")
SEEN = (
    "Anna",
    "Mia",
    "Eva",
    "Ida",
    "Lena",
    "Tom",
    "Ben",
    "Carl",
    "Dan",
    "Erik",
    "Nora",
    "Ruth",
    "Sara",
    "Finn",
    "Hugo",
)
UNSEEN = ("Clara", "Emma", "Karl", "Leo", "Max")


def write_rows(path: Path, names: Sequence[str]) -> Path:
    """Write one row of prompt and completion per name and time of day as JSON lines; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for name in names:
            for time in TIMES:
                row = {"prompt": f"Greet {name} in the {time}.", "completion": f"Good {time}, {name}!"}
                file.write(json.dumps(row) + "\n")
    return path


def finetune(model: str, folder: Path) -> dict[str, Any]:
    """Train, evaluate and generate; return {"before", "after" (metrics), "train" (train's result), "answer"}."""
    train = write_rows(folder / "data" / "train.jsonl", SEEN)
    heldout = str(write_rows(folder / "data" / "heldout.jsonl", UNSEEN))
    run = str(folder / "run")

    before = tunesmith.evaluate(model, data=heldout)
    trained = tunesmith.train(
        {
            "model": model,
            "data": str(train),
            "validation": {"path": heldout},
            "train": {"epochs": 10, "batch_size": 8},
            "output": run,
        }
    )
    after = tunesmith.evaluate(run, data=heldout)
    answered = tunesmith.generate(run, prompt="Greet Clara in the evening.", max_new_tokens=32)
    return {
        "before": before["metrics"],
        "after": after["metrics"],
        "train": trained,
        "answer": answered["answers"][0]["answer"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="starter, a local folder, a hub id or a run's folder")
    parser.add_argument("--output", default="runs/greetings", type=Path, help="a new folder for the data and the run")
    args = parser.parse_args()
    found = finetune(args.model, args.output)
    for name, metric in found["after"].items():
        old = found["before"][name]
        print(
            f"{name}: {old['value']:.3g} before, {metric['value']:.3g} after ({metric['low']:.3g} to {metric['high']:.3g})"
        )
    print(f"{found['train']['steps']} steps, {found['train']['tokens']:,} tokens; the answer: {found['answer']}")
    print(f"the report: {found['train']['run']}/report.html")


if __name__ == "__main__":
    main()
