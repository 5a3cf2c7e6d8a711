"""Lengths in characters: how answers' are spread, answers and prompts far from all others, answers that do not end as the others do."""

from array import array
from heapq import heappush, heapreplace
from typing import Any

import numpy as np

from tunesmith.data.checks.found import Found, Item, excerpt
from tunesmith.data.records import Text

_ENOUGH, _KEPT, _TIMES, _PROSE = 100, 50, 10, 40
_NEARLY_ALL = 0.97


class Lengths:
    """Eight bytes a record, the 50 longest prompts, the 50 longest and the 50 shortest answers, and the endings that are no end."""

    def __init__(self) -> None:
        self._sizes = array("I")
        self._asked = array("I")
        self._least = self._least_answer = -1
        self._long: list[tuple[int, int, str]] = []
        self._long_asked: list[tuple[int, int, str]] = []
        self._short: list[tuple[int, int, str]] = []
        self._ended = self._open = 0
        self._open_rows: list[tuple[int, str]] = []

    def see(self, item: Item) -> None:
        """Measure one record."""
        if asked := len(item.prompt):
            self._asked.append(asked)
            if asked > self._least:  # most are not, and are done with at once
                self._least = _keep(self._long_asked, (asked, item.number, item.prompt[:61]))
        for answer in item.answers:
            size = len(answer)
            self._sizes.append(size)
            if size > self._least_answer:
                self._least_answer = _keep(self._long, (size, item.number, answer[:61]))
            if answer and not answer.isspace():
                _keep(self._short, (-size, item.number, answer[:61]))
            if size > 80 and not isinstance(item.record, Text):
                self._ending(item, answer.rstrip())

    def _ending(self, item: Item, answer: str) -> None:
        if not answer[-1:].islower():
            self._ended += 1
            return
        last = answer[answer.rfind("\n") + 1 :]
        if len(last) < 60 or ". " not in last or not last[0].isupper() or ":" in last or "=" in last:
            return  # an item of a list, a formula, a line of code: how it ends tells nothing
        words = last[last.rfind(". ") + 2 :].split()
        if sum(word[0].islower() for word in words) < 0.6 * len(words) or not words[-1].isalpha():
            return  # a headline, a link, a tag
        self._open += 1
        if len(self._open_rows) < 200:
            self._open_rows.append((item.number, answer[-120:]))

    def summary(self) -> dict[str, Any] | None:
        """Return {"answers", "min", "median", "p95", "max", "histogram": {"edges", "counts"}} in characters; None without answers."""
        return spread(np.frombuffer(self._sizes, dtype=np.uint32)) if self._sizes else None

    def end(self, found: Found) -> None:
        """Note outliers, and answers that end with a letter where nearly all others end with a mark."""
        if self._open and self._open <= (1 - _NEARLY_ALL) * (self._open + self._ended):
            unfinished = {p["row"] for p in found.listed["unfinished"]}
            for number, tail in self._open_rows:
                if number not in unfinished:
                    message = f"the answer ends with no mark; {self._ended / (self._open + self._ended):.1%} of the others end with one."
                    found.add("unfinished", number, None, message, excerpt(tail, max(0, len(tail) - 60)))
        _far(self._asked, self._long_asked, "prompt", found)
        _far(self._sizes, self._long, "answer", found)
        if len(self._sizes) < _ENOUGH:
            return
        low = np.quantile(np.frombuffer(self._sizes, dtype=np.uint32), 0.02, method="lower")
        for size, number, start in sorted(self._short, key=lambda s: s[1]):
            if -size * _TIMES < low and low >= _PROSE:
                found.add(
                    "very_short",
                    number,
                    None,
                    f"the answer has {-size} character{'s' * (size != -1)}; 98% have at least {low:,}.",
                    excerpt(start),
                )


def _far(sizes: "array[int]", longest: list[tuple[int, int, str]], what: str, found: Found) -> None:
    """Note those far longer than nearly all others."""
    if len(sizes) < _ENOUGH:
        return
    middle, high = np.quantile(np.frombuffer(sizes, dtype=np.uint32), [0.5, 0.98], method="lower")
    for size, number, start in sorted(longest, key=lambda s: s[1]):
        if size > _TIMES * max(high, 200):
            message = f"the {what} has {size:,} characters; half of all have at most {middle:,}."
            found.add("very_long", number, None, message, excerpt(start))


def _keep(heap: list[tuple[int, int, str]], entry: tuple[int, int, str]) -> int:
    """Keep an entry if it is among the first 50; return the size that the next must be above, -1 while there is room."""
    if len(heap) < _KEPT:
        heappush(heap, entry)
    elif entry[0] > heap[0][0]:
        heapreplace(heap, entry)
    return heap[0][0] if len(heap) == _KEPT else -1


def spread(sizes: Any, bins: int = 16) -> dict[str, Any]:
    """Return the spread of lengths; the histogram's edges grow by a constant factor, for lengths do."""
    low, high = max(int(sizes.min()), 1), int(sizes.max()) + 1
    edges = np.unique(np.round(np.geomspace(low, max(high, low + 1), bins + 1)).astype(np.int64))
    edges[0] = min(edges[0], int(sizes.min()))
    counts, _ = np.histogram(sizes, edges)
    return {
        "n": len(sizes),
        "min": int(sizes.min()),
        "median": float(np.median(sizes)),
        "p95": int(np.quantile(sizes, 0.95, method="higher")),
        "max": int(sizes.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
