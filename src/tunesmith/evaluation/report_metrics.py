"""The measured result: metrics before and after training, family by family, and the verdict in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tunesmith.evaluation.report_format import count, is_fraction, less_is_better, percent, significant, title
from tunesmith.evaluation.report_run import RunRecord, number

MEAN = "families"  # NAME/families is the mean over the categories, each counting the same


@dataclass(frozen=True)
class Measure:
    """A value with its 95% interval (None where it was not given) and the number of items behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: float | None = None


@dataclass(frozen=True)
class Row:
    """One metric of one category ('' for all items), before and after."""

    category: str
    before: Measure | None
    after: Measure | None


@dataclass(frozen=True)
class Family:
    """A metric and its rows: the one over all items first, then the categories, the best after training first."""

    name: str
    rows: list[Row]

    @property
    def less_is_better(self) -> bool:
        return less_is_better(self.name)

    @property
    def measures(self) -> list[Measure]:
        return [measure for row in self.rows for measure in (row.before, row.after) if measure]

    @property
    def is_fraction(self) -> bool:
        """Whether every value lies in 0..1 and so reads as a percentage."""
        return is_fraction(self.name, (measure.value for measure in self.measures))

    def text(self, value: float | None, unit: bool = True) -> str:
        """Return the value as this metric is written."""
        return percent(value, unit) if self.is_fraction else significant(value)

    def interval(self, measure: Measure) -> str:
        """Return '76–85', or '' without an interval."""
        if measure.low is None or measure.high is None:
            return ""
        return f"{self.text(measure.low, False)}–{self.text(measure.high, False)}"

    def change(self, before: Measure, after: Measure) -> str:
        """Return 'better', 'worse', 'same', or 'unclear' where the two intervals overlap."""
        if before.value == after.value:
            return "same"
        bounds = [before.low, before.high, after.low, after.high]
        if all(bound is not None for bound in bounds):
            first, second = sorted([before, after], key=lambda measure: measure.value)
            if (first.high or 0.0) >= (second.low or 0.0):
                return "unclear"
        return "better" if (after.value < before.value) == self.less_is_better else "worse"


def read_measures(metrics: object) -> dict[str, Measure]:
    """Return the measures of a {NAME: {"value", "n", "low", "high"}}; those without a finite value are left out."""
    found = {}
    for name, entry in metrics.items() if isinstance(metrics, dict) else ():
        parts = entry if isinstance(entry, dict) else {"value": entry}
        value = number(parts.get("value"))
        if value is not None:
            found[str(name)] = Measure(value, *(number(parts.get(key)) for key in ("low", "high", "n")))
    return found


def read_families(run: RunRecord) -> list[Family]:
    """Return the metrics of results.json; those of answers first, then losses and perplexities."""
    before, after = (read_measures((run.results.get(side) or {}).get("metrics")) for side in ("before", "after"))
    rows: dict[str, list[Row]] = {}
    for name in dict.fromkeys([*after, *before]):
        family, _, category = name.partition("/")
        rows.setdefault(family, []).append(Row(category, before.get(name), after.get(name)))
    families = [Family(name, sorted(of, key=_place)) for name, of in rows.items()]
    return sorted(families, key=lambda family: family.less_is_better)


def _place(row: Row) -> tuple[bool, bool, float]:
    """All rows together first, then the mean over families, then the families from the best down."""
    return row.category != "", row.category != MEAN, -row.after.value if row.after else 0.0


def evaluations(run: RunRecord) -> dict[int, dict[str, Measure]]:
    """Return the measures of each evaluation by step, in order; what was measured before training is step 0."""
    measured = {step: read_measures(event.get("metrics")) for step, event in run.evaluations.items()}
    before = read_measures((run.results.get("before") or {}).get("metrics"))
    if before and 0 not in measured:
        measured[0] = before
    return dict(sorted(measured.items()))


def sentence(family: Family) -> str:
    """Return what became of a metric (HTML): 'Held-out exact match rose from 2% (0–6) to 81% (76–85) on 200 prompts'.

    '' if it was not measured both before and after. Without a row over all items it speaks of the mean over categories.
    """
    both = [(row.category, row.before, row.after) for row in family.rows if row.before and row.after]
    if not both:
        return ""
    category, before, after = both[0]
    name = title(family.name).lower()
    where = f" on {count(after.n)} prompts" if after.n and not family.less_is_better else ""
    if category:
        before = Measure(sum(one.value for _, one, _ in both) / len(both))
        after = Measure(sum(one.value for _, _, one in both) / len(both))
        name, where = f"mean {name}", f" over {len(both)} families"
    change = family.change(before, after)
    verb = "rose" if after.value > before.value else "fell" if after.value < before.value else "stayed"
    doubt = ": too close to tell from chance" if change == "unclear" else ""
    texts = [family.text(before.value), family.text(after.value)]
    if not family.less_is_better:
        bounds = [family.interval(one) for one in (before, after)]
        texts = [
            text + (f' <span class="interval">({of})</span>' if of else "")
            for text, of in zip(texts, bounds, strict=True)
        ]
    moved = f"stayed at {texts[1]}" if verb == "stayed" else f"{verb} from {texts[0]} to {texts[1]}"
    held_out = "" if name.startswith("validation") else "held-out "
    return f"{held_out}{escape(name)} {moved}{where}{doubt}"


def metrics_section(families: Sequence[Family]) -> str:
    """Return a table (HTML) per family: before, after, what changed, and both intervals drawn on one scale."""
    if not families:
        return ""
    note = "With 95% intervals. A change is unclear where the two intervals overlap."
    return f'<p class="note">{note}</p>' + "".join(_table(family) for family in families)


def _table(family: Family) -> str:
    sides = [side for side in ("before", "after") if any(getattr(row, side) for row in family.rows)]
    scale = _Scale.of(family)
    note = "less is better" if family.less_is_better else "more is better"
    heads = "".join(f'<th scope="col" class="{side}">{side}</th>' for side in sides)
    change = '<th scope="col" class="change">change</th>' if len(sides) == 2 else ""
    body = "".join(_table_row(family, row, sides, scale) for row in family.rows)
    ends = f"<span>{scale.names[0]}</span><span>{scale.note}</span><span>{scale.names[1]}</span>"
    return (
        f'<div class="family"><h3>{escape(title(family.name))} <span class="unit">{note}</span></h3>'
        f'<table class="metrics"><thead><tr><th scope="col" class="name">over</th>{heads}{change}'
        f'<th scope="col" class="scale"><div>{ends}</div></th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _table_row(family: Family, row: Row, sides: Sequence[str], scale: "_Scale") -> str:
    n = next((measure.n for measure in (row.after, row.before) if measure and measure.n), None)
    name = escape(row.category.replace("_", " ")) or "all"
    if row.category == MEAN:
        name = "mean over families"
    items = f'<span class="n">n = {count(n)}</span>' if n else ""
    values = "".join(_value_cell(family, getattr(row, side), side) for side in sides)
    if len(sides) == 2:
        change = family.change(row.before, row.after) if row.before and row.after else ""
        values += f'<td class="change {change}">{change}</td>'
    return (
        f'<tr class="{"one" if row.category else "all"}"><th scope="row" class="name">{name} {items}</th>{values}'
        f'<td class="scale">{scale.draw(row)}</td></tr>'
    )


def _value_cell(family: Family, measure: Measure | None, side: str) -> str:
    if measure is None:
        return f'<td class="{side}">–</td>'
    interval = family.interval(measure)
    extra = f' <span class="interval">{interval}</span>' if interval else ""
    return f'<td class="{side}">{family.text(measure.value)}{extra}</td>'


@dataclass(frozen=True)
class _Scale:
    """Where a value lies on the drawing, left to right."""

    low: float
    high: float
    logarithmic: bool
    names: tuple[str, str]

    @classmethod
    def of(cls, family: Family) -> "_Scale":
        if family.is_fraction:
            return cls(0.0, 1.0, False, ("0%", "100%"))
        values = [v for one in family.measures for v in (one.value, one.low, one.high) if v is not None]
        low, high = min(values), max(values)
        if low > 0 and high > 30 * low:  # a perplexity falls by orders of magnitude
            return cls(low, high, True, (significant(low), significant(high)))
        low = min(low, 0.0)
        high = high if high > low else low + 1.0
        return cls(low, high, False, (significant(low), significant(high)))

    @property
    def note(self) -> str:
        return "logarithmic" if self.logarithmic else ""

    def at(self, value: float) -> str:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return f"{10 + 980 * min(max((value - low) / (high - low), 0.0), 1.0):.0f}"

    def draw(self, row: Row) -> str:
        """Return the two measures with their intervals as inline SVG: before above, after below."""
        lines = ['<path class="grid" d="M10 0V40M990 0V40"/>']
        for measure, side, y in ((row.before, "before", 12), (row.after, "after", 28)):
            if measure is None:
                continue
            if measure.low is not None and measure.high is not None:
                lines.append(f'<path class="{side} range" d="M{self.at(measure.low)} {y}H{self.at(measure.high)}"/>')
            lines.append(f'<path class="{side} dot" d="M{self.at(measure.value)} {y}h0"/>')
        return f'<svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
