"""The demo: the built-in model learns to follow instructions, then to answer as people like it, and shows what changed.

Both on data it never saw in that form. The first stage is SFT, the second DPO on pairs of answers.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.run import Listener, open_run

# What a user would write in two run files; everything else is inferred. The budget is 75 seconds of training on two cores.
SETTINGS: dict[str, Any] = {
    "model": "starter",
    "objective": "sft",
    "adapter": {"name": "full"},
    "optimizer": {"name": "adamw", "learning_rate": 1.0e-3},
    "train": {"epochs": 3, "tokens_per_step": 2048, "schedule": "cosine"},
    "evaluate": ["rule"],
}
PAIRS, HELD_OUT = 800, 120
PREFERENCES: dict[str, Any] = {
    "objective": {"name": "dpo", "beta": 0.1},
    "adapter": {"name": "full"},
    "optimizer": {"name": "adamw", "learning_rate": 4.0e-5},
    "train": {"epochs": 1, "batch_size": 16, "schedule": "cosine"},
    "evaluate": ["rule"],
}


def run_demo(output: str, listeners: Sequence[Listener] = ()) -> dict[str, Any]:
    """Write the starter's data under `output`, fine-tune the starter in two stages, and return what `train` returns of the second.

    Of the first it is under "sft". The data is made anew and `output`/run and `output`/dpo replaced at every call; nothing else in
    `output` is touched.
    """
    from tunesmith import starter
    from tunesmith.starter.preferences import write_preferences
    from tunesmith.training.api import train

    starter.verify()
    folder = Path(output)
    for run in (folder / "dpo", folder / "run"):
        if (run / "state.json").is_file():
            with open_run(run):  # refused while another process writes it
                shutil.rmtree(run)
    held_out = starter.write_data(folder / "data")["heldout"]
    data = write_preferences(folder / "data", n_pairs=PAIRS, n_heldout=HELD_OUT)

    def stage(settings: dict[str, Any], rows: Path, validation: Path, run: Path) -> dict[str, Any]:
        given = {"data": str(rows), "validation": {"path": str(validation)}, "output": str(run)}
        return train({**settings, **given}, listeners=listeners)

    sft = stage(SETTINGS, data["tuning"], held_out, folder / "run")
    liked = {**PREFERENCES, "model": str(folder / "run")}
    return {**stage(liked, data["pairs"], data["pairs_heldout"], folder / "dpo"), "sft": sft}


def show_demo(result: dict[str, Any], console: Any) -> None:
    """Print what each stage changed: how often answers are right and liked, a few side by side, and what to do next."""
    sft, run = result["sft"], result["run"]
    _show_families(_results(sft), console)
    console.print(f"{_spent(sft)}\nreport  {sft['run']}/report.html\n")
    _show_preferences(_results(result), console)
    console.print(_spent(result))
    console.print(f"report  {run}/report.html")
    console.print(f"chat    tunesmith chat {run}")


def _results(result: dict[str, Any]) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((Path(result["run"]) / "results.json").read_text())
    return found


def _spent(result: dict[str, Any]) -> str:
    speed = f"{result['tokens_per_second']:,.0f} tokens per second"
    return f"{result['tokens']:,} tokens in {result['seconds']:.0f} s of training ({speed})"


def _show_families(results: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    before, after = results["before"]["metrics"], results["after"]["metrics"]
    table = Table(box=None, pad_edge=False)
    for name in ("family", "before", "after"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for name in sorted(n for n in after if n.startswith("rule/") and n != "rule/families"):
        table.add_row(name.removeprefix("rule/"), f"{before[name]['value']:.0%}", f"{after[name]['value']:.0%}")
    mean_before, mean = before["rule/families"], after["rule/families"]
    table.add_section()
    table.add_row("mean over families", f"{mean_before['value']:.0%}", f"{mean['value']:.0%}", style="bold")
    console.print("\nFirst stage, SFT: held-out instructions answered as the rule asks")
    console.print(table)
    console.print()
    _show_samples(one_per_family(results["samples"])[:3], console)


def _show_preferences(results: dict[str, Any], console: Any) -> None:
    """Print how the answers after DPO do against those before it, by the starter's judge."""
    from tunesmith.starter.judge import SPOKEN, compare, judge

    samples = [s for s in results["samples"] if s["category"] in SPOKEN]
    rules = [{"rule": "same_words", "answers": [s["reference"]]} for s in samples]  # in either voice
    marks = {
        when: [judge(s[when], rule, s["category"]) for s, rule in zip(samples, rules, strict=True)]
        for when in ("before", "after")
    }
    found, metrics = compare(marks["after"], marks["before"]), results["after"]["metrics"]
    right, liked = ([f"{sum(m >= least for m in marks[w]) / len(samples):.0%}" for w in marks] for least in (0.5, 1.0))
    console.print("Second stage, DPO: of two right answers people like the warm one")
    console.print(f"the liked answer of held-out pairs is preferred  {metrics['preference_accuracy']['value']:.0%}")
    console.print(f"answers that are right                           {right[0]} before, {right[1]} after")
    console.print(f"answers that are right and warm                  {liked[0]} before, {liked[1]} after")
    console.print(f"win rate over the first stage, ties half         [bold]{found['win_rate']:.0%}[/bold]\n")
    changed = [s for s in samples if s["before"] != s["after"]] or samples
    _show_samples(one_per_family(changed)[:2], console)


def _show_samples(samples: list[dict[str, Any]], console: Any) -> None:
    for sample in samples:
        console.print(f"[bold]{_escape(sample['prompt'][-1]['content'])}[/bold]")
        console.print(f"  before  [dim]{_escape(_short(sample['before']))}[/dim]")
        console.print(f"  after   {_escape(_short(sample['after']))}\n")


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
