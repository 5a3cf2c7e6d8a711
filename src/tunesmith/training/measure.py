"""What a run measures of itself: the validation loss while it goes, metrics and answers before and after it."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith import registry, run
from tunesmith.data.kinds import as_kind
from tunesmith.data.records import Chat, Examples, Record, Text
from tunesmith.evaluation.items import Item
from tunesmith.model.policy import Policy
from tunesmith.training.objective import Objective
from tunesmith.training.parallel import ALONE, World

SAMPLES = 8  # answers shown before and after where no metric asks for more
Metrics = dict[str, dict[str, Any]]


def validation_metrics(
    objective: Objective, policy: Policy, examples: Examples | None, tokens: int, world: World = ALONE
) -> Metrics:
    """Return what the objective measures on the examples, "validation_loss" and more, with 95% intervals; {} without examples."""
    return {} if examples is None else objective.measure(policy, examples, tokens, world)


def chats(records: Sequence[Record]) -> Sequence[Record]:
    """Return the records that have an answer to compare with; preferences as chats with the best one, verdicts found good."""
    if all(isinstance(record, Chat | Text) for record in islice(records, 1)):
        return records
    return [chat for record in records if not isinstance(record, Text) for chat in as_kind(record, "chat")]


def answers(
    policy: Policy,
    tokenizer: Any,
    records: Sequence[Record],
    metrics: Sequence[dict[str, Any]],
    max_length: int,
    world: World = ALONE,
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Return the asked metrics over all records and, per answered row, {"category", "prompt", "reference", "answer", "score"}.

    Where no metric asks for answers the first few rows are answered all the same, for people to read, and not scored.
    """
    from tunesmith.evaluation.evaluator import evaluate_records

    found: Metrics = {}
    records = chats(records)
    if metrics:
        measured = evaluate_records(policy, tokenizer, records, metrics, max_length=max_length, world=world)
        found = measured.metrics
        shown = next(
            (m["name"] for m in metrics if registry.load("evaluation.metrics", m["name"]).NEEDS == "answers"), None
        )
        if shown is not None:
            return found, [_sample(item, shown) for item in measured.items if item.answer is not None]
    rows = [r for r in records if isinstance(r, Chat)][:SAMPLES]
    if not rows:
        return found, []
    read = evaluate_records(policy, tokenizer, rows, [{"name": "exact_match"}], max_length=max_length, world=world)
    return found, [_sample(item, None) for item in read.items if item.answer is not None]


def _sample(item: Item, metric: str | None) -> dict[str, Any]:
    score = item.scores.get(metric) if metric else None
    return {
        "category": item.category,
        "prompt": item.prompt,
        "reference": item.reference,
        "answer": item.answer,
        "score": score[0] if score else None,
    }


def before(path: Path, metrics: Metrics, samples: list[dict[str, Any]]) -> None:
    """Keep what was measured before training in results.json, for a resumed run to find."""
    run.write_json(path, {"before": {"metrics": metrics}, "samples": samples})


def after(path: Path, metrics: Metrics, samples: list[dict[str, Any]], train: dict[str, Any]) -> None:
    """Complete results.json: before, after, and the same prompts' answers side by side."""
    kept = json.loads(path.read_text())
    paired = []
    for old, new in zip(kept["samples"], samples, strict=True):
        same = {k: new[k] for k in ("category", "prompt", "reference")}
        if "answer" in old:  # else the run ended here once, just before it was done
            old = {"before": old["answer"], "before_score": old["score"]}
        scores = {"before_score": old["before_score"], "after_score": new["score"]}
        paired.append({**same, "before": old["before"], "after": new["answer"], **scores})
    run.write_json(path, {"before": kept["before"], "after": {"metrics": metrics}, "samples": paired, "train": train})
