"""Line charts as inline SVG. The drawing stretches to any width; its labels are HTML and stay readable on a phone."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from tunesmith.evaluation.report_format import scientific, significant

Point = tuple[float, float]
MOST_POINTS = 600
SIZE = 1000  # of the drawing's own coordinates, both ways


@dataclass(frozen=True)
class Series:
    """One curve (or, as `dots`, one set of measured points). `style` is its class in report.css."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False
    read_out: bool = True


def downsample(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most about `most` points: the lowest and the highest of each stretch, and both ends, in order.

    So a spike of a single step among 100,000 is still seen.
    """
    if len(points) <= most:
        return list(points)
    buckets = most // 2
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        stretch = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        kept.add(min(stretch, key=lambda i: points[i][1]))
        kept.add(max(stretch, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Return the centred moving average over about a thirtieth of the points: it does not lag as a running one does."""
    half = len(points) // 60
    sums = [0.0, *accumulate(y for _, y in points)]
    averaged = []
    for i, (x, _) in enumerate(points):
        first = max(0, i - half)
        last = min(len(points) - 1, 2 * i - first, i + half)  # alike on both sides at the start, where losses are steep
        averaged.append((x, (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return averaged


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high, about `about` gaps."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return one text per tick, all with the same number of decimals."""
    largest = max(abs(value) for value in values)
    step = values[1] - values[0] if len(values) > 1 else largest
    if largest >= 1e9 or largest < 0.01:
        return ["0" if abs(value) < step / 2 else scientific(value, 2) for value in values]
    if largest >= 10_000:
        unit, size = ("M", 1e6) if largest >= 1e6 else ("k", 1e3)
        return ["0" if value == 0 else f"{value / size:g}{unit}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}" for value in values]


@dataclass(frozen=True)
class Axes:
    """What the drawing spans, and its round numbers."""

    last: float  # the step at the right edge; the left one is 0
    x_ticks: list[float]
    y_ticks: list[float]

    def across(self, x: float) -> float:
        """Return 0 at the left edge, 1 at the right."""
        return x / self.last

    def down(self, y: float) -> float:
        """Return 0 at the top, 1 at the bottom."""
        return (self.y_ticks[-1] - y) / (self.y_ticks[-1] - self.y_ticks[0])


def axes(series: Sequence[Series], zero: bool) -> Axes:
    """Return axes that hold every point; the vertical one begins at 0 if asked to, or where the values come near it."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    low, high = min(ys), max(ys)
    if low > 0 and (zero or low < 0.5 * high):
        low = 0.0
    last = max(*xs, 1)
    x_ticks = [x for x in ticks(0, last, 5) if x <= last and x == int(x)]
    return Axes(last, x_ticks, ticks(low, high))


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    zero: bool = False,
    legend: bool = False,
    resumed: Sequence[int] = (),
) -> str:
    """Return a figure (HTML) of `series` over steps, or '' if none has a point.

    zero: the vertical axis begins at 0 whatever the values. resumed: the steps at which the run was taken up again.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    frame = axes(series, zero)
    marks = [step for step in resumed if step <= frame.last]
    y_names = tick_labels(frame.y_ticks)
    drawing = "".join(
        [f'<path class="grid" d="M0 {_at(frame.down(y))}H{SIZE}"/>' for y in frame.y_ticks]
        + [f'<path class="mark" d="M{_at(frame.across(step))} 0V{SIZE}"/>' for step in marks]
        + [_draw(one, frame) for one in series]
    )
    left = _labels("top", [frame.down(y) for y in frame.y_ticks], y_names)
    below = _labels("left", [frame.across(x) for x in frame.x_ticks], tick_labels(frame.x_ticks))
    keys = _legend(series, bool(marks)) if legend else ""
    ends = [significant(series[0].points[i][1]) for i in (0, -1)]
    return (
        f'<figure class="chart" data-chart="{escape(_read_out(series, frame))}">'
        f'<figcaption><b>{escape(title)}</b> <span class="unit">{escape(unit)}</span>{keys}'
        f'<output></output></figcaption><div class="plot" style="--label:{max(map(len, y_names))}ch">'
        f'<div class="left">{left}</div><svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}: {ends[0]} at first, {ends[1]} at last">{drawing}<path class="cross" d=""/></svg>'
        f'<div class="below">{below}</div></div></figure>'
    )


def _at(fraction: float) -> str:
    return f"{SIZE * fraction:.1f}".removesuffix(".0")


def _labels(edge: str, places: Sequence[float], names: Sequence[str]) -> str:
    """Return the names at their places; the outermost ones of a horizontal axis stay within it."""
    spots = zip(places, names, strict=True)
    sides = {False: "", True: ' class="inward"'}
    return "".join(
        f'<span{sides[place > 0.97]} style="{edge}:{100 * place:.2f}%">{name}</span>' for place, name in spots
    )


def _draw(series: Series, frame: Axes) -> str:
    """Return the curve as one path. A dot is a line of no length with round ends: it keeps its shape when stretched."""
    places = [(_at(frame.across(x)), _at(frame.down(y))) for x, y in series.points]
    if series.dots or len(places) == 1:
        hints = [f"{series.name}, step {x:,.0f}: {significant(y)}" for x, y in series.points]
        return "".join(
            f'<path class="{series.style} dot" d="M{x} {y}h0"><title>{escape(hint)}</title></path>'
            for (x, y), hint in zip(places, hints, strict=True)
        )
    line = "L".join(f"{x} {y}" for x, y in places)
    return f'<path class="{series.style}" d="M{line}"/>'


def _legend(series: Sequence[Series], resumed: bool) -> str:
    entries = [(one.style, one.name) for one in series]
    entries += [("mark", "resumed")] if resumed else []
    keys = "".join(f'<span class="key {style}">{escape(name)}</span>' for style, name in entries)
    return f'<span class="legend">{keys}</span>'


def _read_out(series: Sequence[Series], frame: Axes) -> str:
    """Return the numbers the pointer reads out, as JSON: {"last": step, "series": [{"name", "x", "y"}]}."""
    shown = [
        {"name": one.name, "x": [round(x) for x, _ in one.points], "y": [float(f"{y:.4g}") for _, y in one.points]}
        for one in series
        if one.read_out
    ]
    return json.dumps({"last": frame.last, "series": shown}, separators=(",", ":"))
