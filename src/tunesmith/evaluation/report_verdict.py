"""The top of the report: what got better in one sentence, what was tuned on what, and the run's size."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.evaluation.report_format import count, duration, memory, significant
from tunesmith.evaluation.report_metrics import Family, evaluations, sentence
from tunesmith.evaluation.report_run import RunRecord, number

STATES = {"done": "finished", "stopped": "stopped by a guard", "running": "not finished"}


def header(run: RunRecord, families: list[Family]) -> str:
    """Return the verdict in one sentence, what was tuned on what, and what is odd about how the run ended."""
    facts = [run_name(run), _date(run.began), STATES.get(run.state, run.state)]
    eyebrow = " · ".join(escape(fact) for fact in facts if fact)
    lead = "".join(f'<p class="lead">{line}</p>' for line in (tuned(run), unfinished(run)) if line)
    return f'<header><p class="eyebrow">{eyebrow}</p><h1>{verdict(run, families)}</h1>{lead}</header>'


def verdict(run: RunRecord, families: list[Family]) -> str:
    """Return what got better or worse (HTML), from the best evidence that the run's folder holds."""
    losses = [family for family in families if family.less_is_better and "loss" in family.name]
    said = [sentence(family) for family in families if not family.less_is_better][:1]
    said += [sentence(family) for family in losses[:1]]
    if not any("validation loss" in one for one in said):
        said.append(_validation_sentence(run))
    said = [one for one in said if one]
    if not said:
        said = [_training_sentence(run)]
    text = "; ".join(said) + "."
    return text[:1].upper() + text[1:]


def _validation_sentence(run: RunRecord) -> str:
    measured = {
        step: measures["validation_loss"]
        for step, measures in evaluations(run).items()
        if "validation_loss" in measures
    }
    if len(measured) < 2:
        return ""
    (first, before), *_, (last, after) = measured.items()
    verb = "fell" if after.value < before.value else "rose" if after.value > before.value else "stayed"
    since = "" if first == 0 else f" at step {count(first)}"
    until = f"{significant(after.value)} at step {count(last)}"
    return f"validation loss {verb} from {significant(before.value)}{since} to {until}"


def _training_sentence(run: RunRecord) -> str:
    losses = [
        (step, loss) for step, event in sorted(run.steps.items()) if (loss := number(event.get("loss"))) is not None
    ]
    if not losses:
        return "This run has no training step to report yet"
    (first, before), (last, after) = losses[0], losses[-1]
    return (
        f"training loss went from {significant(before)} at step {count(first)} to {significant(after)} at step "
        f"{count(last)}; nothing held out was measured, so this does not say whether the model got better"
    )


def tuned(run: RunRecord) -> str:
    """Return what was tuned on what, in a sentence (HTML); '' before anything has started."""
    start = run.start
    if not start:
        return ""
    model = str(start.get("model", "A model"))
    model = Path(model).name if Path(model).is_absolute() else model
    trained, total = number(start.get("trained_parameters")), number(start.get("parameters"))
    parts = [f"<b>{escape(model)}</b> trained with <b>{escape(str(start.get('objective')))}</b>"]
    if start.get("adapter"):
        of = f"all {count(total)}" if trained == total else f"{count(trained)} of {count(total)}"
        share = f" ({of} parameters)" if trained and total else ""
        parts.append(f"through the <b>{escape(str(start['adapter']))}</b> adapter{share}")
    if start.get("rows") is not None:
        parts.append(f"on {count(number(start['rows']))} rows" + _sources(run))
    text = " ".join(parts)
    held_out = number(start.get("validation_rows"))
    return f"{text}; {count(held_out)} more rows were held out." if held_out else f"{text}; no row was held out."


def _sources(run: RunRecord) -> str:
    data = run.config.get("data")
    entries = data if isinstance(data, list) else [data] if data else []
    paths = [str(entry.get("path", "") if isinstance(entry, dict) else entry) for entry in entries]
    names = [f"<b>{escape(Path(path).name or path)}</b>" for path in paths if path]
    return f" of {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else ""


def unfinished(run: RunRecord) -> str:
    """Return a sentence (HTML) on a run that did not reach its end; '' for one that did."""
    if run.state in ("done", ""):
        return ""
    total = number(run.start.get("steps"))
    at = f"step {count(run.last_step)}" + (f" of {count(total)}" if total else "")
    said = {
        "running": f"The run had reached {at} when this was written.",
        "interrupted": f"The run was interrupted at {at}; it can be resumed.",
        "stopped": f"A guard stopped the run at {at}.",
    }.get(run.state, f"The run failed at {at}.")
    message = run.end.get("message")
    return f'<span class="worse">{said}</span>' + (f" {escape(str(message))}" if message else "")


def tiles(run: RunRecord) -> str:
    """Return the run's size in a few numbers: steps, tokens, speed, wall time, memory."""
    train = run.results.get("train") or {}
    steps = list(run.steps.values())

    def total(key: str, events: list[dict[str, Any]]) -> float:
        return sum(number(event.get(key)) or 0.0 for event in events)

    def known(key: str, otherwise: float | None) -> float | None:
        return found if (found := number(train.get(key))) is not None else otherwise

    tokens, scored = known("tokens", total("tokens", steps)), known("scored_tokens", total("scored_tokens", steps))
    stepping = total("seconds", steps[2:])  # the first two warm caches up
    speed = known("tokens_per_second", total("tokens", steps[2:]) / stepping if stepping else None)
    wall = known("seconds", number(run.end.get("seconds")) or total("seconds", steps) or None)
    peak = known("peak_memory_bytes", max((number(e.get("memory_bytes")) or 0.0 for e in steps), default=0.0) or None)
    epochs = number(run.start.get("epochs"))
    planned = number(run.start.get("steps"))
    last = known("steps", run.last_step)
    below_steps = f"of {count(planned)}" if planned and last != planned else f"{epochs:g} epochs" if epochs else ""
    share = f"{count(scored)} scored" if tokens and scored else ""
    shown = [("Steps", count(last), below_steps), ("Tokens", count(tokens), share)]
    shown += [("Tokens per second", count(speed), ""), ("Wall time", duration(wall), "")]
    shown += [("Peak memory", memory(peak), "")]
    return '<dl class="tiles">' + "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class='small'>{extra}</dd></div>" for name, value, extra in shown
    ) + "</dl>"  # fmt: skip


def run_name(run: RunRecord) -> str:
    """Return the last part of the run's path."""
    return Path(str(run.start.get("run") or run.folder.resolve())).name


def _date(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%-d %B %Y, %H:%M UTC") if seconds else ""
