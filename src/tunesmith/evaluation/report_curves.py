"""The curves of a run: losses, learning rate, gradient norm, throughput, processor and memory use."""

from tunesmith.evaluation.report_chart import Point, Series, downsample, line_chart, smooth
from tunesmith.evaluation.report_format import byte_unit, is_fraction, less_is_better, title
from tunesmith.evaluation.report_metrics import evaluations
from tunesmith.evaluation.report_run import RunRecord, number

MOST_DOTS = 60  # more evaluations than this are drawn as a line


def curves_section(run: RunRecord) -> str:
    """Return the charts as HTML; one without a measured point is left out, '' if all are."""
    memory = _of_steps(run, "memory_bytes")
    size, unit = byte_unit(max((y for _, y in memory), default=0.0))
    charts = [
        _loss(run),
        *_metrics(run),
        _plain(run, "Learning rate", "", _of_steps(run, "learning_rate")),
        _smoothed(run, "Gradient norm", "before clipping", _of_steps(run, "grad_norm")),
        _plain(run, "KL to the base", "nats per scored token", _of_steps(run, "kl_to_base")),
        _plain(run, "Distance to the base", "norm of the trained weights' change", _of_steps(run, "distance_to_base")),
        _smoothed(run, "Throughput", "tokens per second", _of_steps(run, "tokens_per_second")),
        _smoothed(run, "Processor use", "% of the machine", _of_steps(run, "cpu_percent")),
        _plain(run, "Memory", unit, [(x, y / size) for x, y in memory]),
    ]
    shown = [chart for chart in charts if chart]
    faint = '<p class="note">Over steps. Faint: each step; strong: their moving average.</p>'
    return f'{faint}<div class="charts">{"".join(shown)}</div>' if shown else ""


def _of_steps(run: RunRecord, key: str) -> list[Point]:
    pairs = ((step, number(event.get(key))) for step, event in sorted(run.steps.items()))
    return [(float(step), value) for step, value in pairs if value is not None]


def _of_evaluations(run: RunRecord) -> dict[str, list[Point]]:
    """Return the measures over all items by name, as points over steps."""
    points: dict[str, list[Point]] = {}
    for step, measures in evaluations(run).items():
        for name, measure in measures.items():
            if "/" not in name:
                points.setdefault(name, []).append((float(step), measure.value))
    return points


def _curves(points: list[Point], name: str = "each step") -> list[Series]:
    """Return the raw values, faint, under their moving average; few points need no average."""
    if len(points) < 20:
        return [Series(name, points, "main")]
    average = Series("smoothed", downsample(smooth(points)), "main")
    return [Series(name, downsample(points), "raw", read_out=False), average]


def _loss(run: RunRecord) -> str:
    measured = _of_evaluations(run).get("validation_loss", [])
    validation = Series("validation", downsample(measured), "validation", dots=len(measured) <= MOST_DOTS)
    training = _curves(_of_steps(run, "loss"), "training")
    compared = any(_of_steps(run, fact) for fact in ("rewards_margins", "rewards"))
    unit = "mean over the rows" if compared else "nats per scored token"
    return line_chart("Loss", unit, [*training, validation], legend=True, resumed=run.resumed)


def _metrics(run: RunRecord) -> list[str]:
    """Return a chart per other metric that was measured at least twice on the way; a perplexity repeats the loss."""
    charts = []
    for name, points in _of_evaluations(run).items():
        if len(points) < 2 or less_is_better(name):
            continue
        fraction = is_fraction(name, (y for _, y in points))
        shown = [(x, 100 * y) for x, y in points] if fraction else points
        unit = "%, held out" if fraction else "held out"
        charts.append(line_chart(title(name), unit, [Series(name, downsample(shown), "validation")], zero=True))
    return charts


def _smoothed(run: RunRecord, name: str, unit: str, points: list[Point]) -> str:
    return line_chart(name, unit, _curves(points), zero=True, resumed=run.resumed)


def _plain(run: RunRecord, name: str, unit: str, points: list[Point]) -> str:
    return line_chart(name, unit, [Series(name.lower(), downsample(points), "main")], zero=True, resumed=run.resumed)
