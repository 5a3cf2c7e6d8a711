"""Recall, precision and speed of the patterns for personal data: on the labelled set, and on files of one's own.

    python benchmarks/personal_data.py [--rounds 20] [FILE.jsonl ...]

The held-out part of the labelled set (tests/data/personal/labelled.py) has templates that the patterns were not written
on. Of files is told what was found by kind, never the values, and the processor's time per row.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data" / "personal"))

import labelled

from tunesmith.data.content import texts
from tunesmith.data.personal import find
from tunesmith.data.sources import load

CLEAN = "The quick brown fox jumps over the lazy dog while the cat looks at the moon and thinks about fish. " * 4


def quality(rounds: int) -> None:
    """Print recall and precision by kind on both parts."""
    for held_out in (False, True):
        rows = labelled.labelled(held_out, rounds)
        counts = labelled.measure(find, rows)
        recall, precision = labelled.overall(counts)
        spans = sum(len(s) for _, s in rows)
        print(f"\n{'held-out' if held_out else 'tuning'} part: {len(rows)} texts, {spans} values")
        print(f"{'kind':20s}{'values':>8s}{'recall':>9s}{'precision':>11s}")
        for kind, (right, missed, wrong) in counts.items():
            print(f"{kind:20s}{right + missed:8d}{_share(right, missed)}  {_share(right, wrong)}")
        print(f"{'all':20s}{spans:8d}{recall:9.3f}  {precision:9.3f}")


def _share(right: int, other: int) -> str:
    return f"{right / (right + other):9.3f}" if right + other else f"{'-':>9s}"


def speed() -> None:
    """Print the processor's time on a clean text of 400 characters, median of seven times 2,000."""
    times = []
    for _ in range(7):
        start = time.process_time()
        for _ in range(2000):
            find(CLEAN)
        times.append((time.process_time() - start) / 2000 * 1e6)
    print(f"\na clean text of {len(CLEAN)} characters: {statistics.median(times):.1f} µs")


def files(paths: list[str]) -> None:
    """Print what is found in files by kind, and the time per row."""
    for path in paths:
        rows = [[said for _, said in texts(record)] for record in load([path]).records]
        start = time.process_time()
        found = Counter(kind for row in rows for said in row for kind, _, _ in find(said))
        each = (time.process_time() - start) / len(rows) * 1e6
        length = sum(len(said) for row in rows for said in row) / len(rows)
        print(f"{path}: {len(rows)} rows of {length:.0f} characters, {each:.1f} µs a row, {json.dumps(found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    quality(options.rounds)
    speed()
    files(options.files)
