"""Verdicts that can be learnt from: both labels, and, where answers are mismatched, two prompts."""

from collections.abc import Iterable
from itertools import chain

from tunesmith.data.records import Record, Verdict
from tunesmith.data.splits import prompt_hash
from tunesmith.errors import InputError


def check(records: Iterable[Record], objective: str, mismatched: bool) -> None:
    """InputError where all verdicts among the training `records` have one label; or, for an objective that takes answers to other
    prompts, one prompt. Reads no further than it takes to find two of each.
    """
    labels: set[bool] = set()
    prompts: set[int] = set()
    files: dict[str, None] = {}
    rows = 0
    for record in (r for r in records if isinstance(r, Verdict)):
        rows += 1
        files[record.origin.file] = None
        labels.add(record.good)
        if mismatched and len(prompts) < 2:
            prompts.add(prompt_hash(record))
        if len(labels) == 2 and len(prompts) == (2 if mismatched else 0):
            return
    if rows and len(labels) == 1:
        raise _one_label(list(files), rows, labels.pop(), objective)
    if rows:
        raise InputError(
            f"{_named(list(files))}: all {rows:,} training rows have the same prompt, but {objective} measures what they are rewarded by "
            "from answers to other prompts; take the objective bco or apo_zero_unpaired, which need none."
        )


def _one_label(files: list[str], rows: int, good: bool, objective: str) -> InputError:
    found, missing = ("good", "bad") if good else ("bad", "good")
    remedy = ", or train on these with --objective sft and `as: chat` in their data entry" if good else ""
    every = "the only training row is" if rows == 1 else f"all {rows:,} training rows are"
    return InputError(
        f"{_named(files)}: {every} labelled {str(good).lower()} ({found}), and {objective} learns from both; add {missing} answers{remedy}."
    )


def _named(files: list[str]) -> str:
    return ", ".join(chain(files[:3], ["…"] if len(files) > 3 else []))
