"""Labels: how often each verdict, class or category occurs, and those that look misspelt."""

import difflib
from collections import Counter
from typing import Any

from tunesmith.data.checks.found import Found, Item
from tunesmith.data.records import Chat, Prompt, Verdict

_FIELDS = frozenset((
    "label", "labels", "category", "class", "topic", "intent", "sentiment", "task", "task_type", "domain", "difficulty",
    "emotion", "subject", "language",
))  # fmt: skip
_MOST, _LONGEST, _ENOUGH = 60, 40, 50
_TOP, _RATIO = 0.8, 20
_RARE = 0.01


class Labels:
    """Counts of a file's few-valued fields, of its verdicts, and of its answers where they are few and short."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._rows: dict[str, dict[str, list[int]]] = {}
        self._many: set[str] = set()

    def see(self, item: Item) -> None:
        """Count what one record is labelled with."""
        record = item.record
        if isinstance(record, Verdict):
            self._count("verdict", "good" if record.good else "bad", item.number)
        elif "answer" not in self._many and isinstance(record, (Chat, Prompt)) and len(item.answers) == 1:
            self._count("answer", item.answers[0].strip(), item.number)
        for name in _FIELDS.intersection(record.extra):
            value: Any = record.extra[name]
            if isinstance(value, (str, int)):
                self._count(name, str(value).strip(), item.number)

    def _count(self, name: str, value: str, number: int) -> None:
        if name in self._many or not value:
            return
        counts = self._counts.setdefault(name, Counter())
        counts[value] += 1
        rows = self._rows.setdefault(name, {}).setdefault(value, [])
        if len(rows) < 3:
            rows.append(number)
        if len(counts) > _MOST or len(value) > _LONGEST:
            self._many.add(name)
            del self._counts[name], self._rows[name]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {field: {label: rows}} of the fields that hold labels, the most frequent first."""
        return {
            n: dict(c.most_common())
            for n, c in self._counts.items()
            if c.total() >= _ENOUGH and c.total() >= 5 * len(c)
        }

    def end(self, found: Found) -> None:
        """Note labels out of balance and misspelt ones, and what is to be learnt but is the same everywhere."""
        for name, counts in self.counts().items():
            if len(counts) == 1 and name in ("verdict", "answer", "label"):
                message = f'the {name} is "{next(iter(counts))}" in all of the rows, so there is nothing to tell apart.'
                found.add("label_imbalance", None, name, message)
            self._typos(name, counts, found)
            total = sum(counts.values())
            usual = {k: n for k, n in counts.items() if n > _RARE * total}
            (top, most), least = max(counts.items(), key=lambda kv: kv[1]), min(usual.values())
            if len(counts) > 1 and (most > _TOP * total or (most > _RATIO * least and len(usual) > 1)):
                shares = ", ".join(f"{k} {n / total:.1%}" for k, n in list(counts.items())[:6])
                found.add(
                    "label_imbalance",
                    None,
                    name,
                    f'the {name} is "{top}" in {most / total:.0%} of the rows ({shares}).',
                )

    def _typos(self, name: str, counts: dict[str, int], found: Found) -> None:
        total = sum(counts.values())
        usual = [k for k, n in counts.items() if n > 2 * _RARE * total]
        for label, n in counts.items():
            if n > max(1, _RARE * total) or any(c.isdigit() for c in label):
                continue
            near = next((u for u in usual if u.lower() == label.lower()), None)
            near = near or next(iter(difflib.get_close_matches(label, [u for u in usual if len(u) > 3], 1, 0.85)), None)
            if near:
                for row in self._rows[name][label]:
                    found.add(
                        "label_typo",
                        row,
                        name,
                        f'the label "{label}" occurs {n} time{"s" * (n > 1)}. Did you mean "{near}"?',
                        label,
                    )
