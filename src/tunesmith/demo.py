"""The demo: the built-in model learns to follow instructions, on data it never saw in that form, and shows what changed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.run import Listener, open_run

# What a user would write in a run file; everything else is inferred. The budget is 75 seconds of training on two cores.
SETTINGS: dict[str, Any] = {
    "model": "starter",
    "objective": "sft",
    "adapter": {"name": "full"},
    "optimizer": {"name": "adamw", "learning_rate": 1.0e-3},
    "train": {"epochs": 3, "tokens_per_step": 2048, "schedule": "cosine"},
    "evaluate": ["rule"],
}


def run_demo(output: str, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Write the starter's instructions under `output`, fine-tune the starter on them, and return what `train` returns.

    The data is made anew and `output`/run replaced at every call; nothing else in `output` is touched.
    """
    from tunesmith import starter
    from tunesmith.training.api import train

    starter.verify()
    folder = Path(output)
    run = folder / "run"
    if (run / "state.json").is_file():
        with open_run(run):  # refused while another process writes it
            shutil.rmtree(run)
    data = starter.write_data(folder / "data")
    config = {**SETTINGS, "data": str(data["train"]), "validation": {"path": str(data["heldout"])}, "output": str(run)}
    return train(config, listeners=listeners)


def show_demo(result: dict[str, Any], console: Any) -> None:
    """Print what changed: each family before and after, a few answers side by side, and what to do next."""
    import json

    from rich.table import Table

    run = Path(result["run"])
    results = json.loads((run / "results.json").read_text())
    before, after = results["before"]["metrics"], results["after"]["metrics"]
    table = Table(box=None, pad_edge=False)
    for name in ("family", "before", "after"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for name in sorted(n for n in after if n.startswith("rule/") and n != "rule/families"):
        table.add_row(name.removeprefix("rule/"), f"{before[name]['value']:.0%}", f"{after[name]['value']:.0%}")
    mean_before, mean = before["rule/families"], after["rule/families"]
    table.add_section()
    table.add_row("mean over families", f"{mean_before['value']:.0%}", f"{mean['value']:.0%}", style="bold")
    console.print("\nHeld-out instructions answered as the rule asks")
    console.print(table)
    console.print()
    for sample in one_per_family(results["samples"])[:4]:
        console.print(f"[bold]{_escape(sample['prompt'][-1]['content'])}[/bold]")
        console.print(f"  before  [dim]{_escape(_short(sample['before']))}[/dim]")
        console.print(f"  after   {_escape(_short(sample['after']))}\n")
    seconds = result["seconds"]
    console.print(
        f"{result['tokens']:,} tokens in {seconds:.0f} s of training ({result['tokens_per_second']:,.0f} tokens per second)"
    )
    console.print(f"report  {run}/report.html")
    console.print(f"chat    tunesmith chat {run}")


def one_per_family(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first sample of each family, in the samples' order."""
    first: dict[str, dict[str, Any]] = {}
    for sample in samples:
        first.setdefault(sample["category"] or "", sample)
    return list(first.values())


def _short(text: str, most: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
