"""A reward model in the report: how sure it is and how often it is right, whether it scores length, and what its scores are."""

from html import escape
from typing import Any

from tunesmith.evaluation.report_format import count, percent, significant
from tunesmith.evaluation.report_run import number


def reward_section(facts: object) -> str:
    """Return the section (HTML) of what training.reward_report.describe found; '' without it."""
    if not isinstance(facts, dict):
        return ""
    length = facts.get("length") or {}
    return (
        (f'<p class="lead worse">{escape(_first_upper(str(length["alarm"])))}</p>' if length.get("alarm") else "")
        + _calibration(facts.get("calibration"))
        + _length(length)
        + _attributes(facts.get("attributes"))
    )


def _calibration(found: Any) -> str:
    """Return a table of confidence and accuracy, both drawn on one scale."""
    if not isinstance(found, dict) or not found.get("bins"):
        return ""
    rows = ""
    for one in found["bins"]:
        ends = f"{percent(one['from'], False)}–{percent(one['to'])}"
        rows += (
            f'<tr><th scope="row" class="name">{ends} <span class="n">n = {count(one["n"])}</span></th>'
            f'<td class="before">{percent(one["confidence"])}</td><td class="after">{percent(one["accuracy"])}</td>'
            f'<td class="scale">{_dots(one["confidence"], one["accuracy"])}</td></tr>'
        )
    interval = _interval(found, percent)
    return (
        f'<div class="family"><h3>How sure, and how often right <span class="unit">expected calibration error '
        f"{percent(found['value'])}{interval}: how far the two are apart</span></h3>"
        f'<table class="metrics"><thead><tr><th scope="col" class="name">confidence</th><th scope="col" class="before">sure</th>'
        f'<th scope="col" class="after">right</th><th scope="col" class="scale"><div><span>0%</span><span>100%</span></div></th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _length(found: dict[str, Any]) -> str:
    """Return a sentence on score and length."""
    value = number(found.get("correlation"))
    if value is None:
        return ""
    longer = number(found.get("longer"))
    data = "" if longer is None else f"; the data prefers the longer answer in {percent(longer)} of its pairs"
    said = "no more than a tenth of how far scores are apart" if not found.get("alarm") else percent(value * value)
    return (
        f'<div class="family"><h3>Length</h3><p>Correlation of score and answer length: {significant(value)} on {count(found["n"])} '
        f"rows; length explains {said}{data}.</p></div>"
    )


def _attributes(found: Any) -> str:
    """Return a table of the scores: their weights, spread and how well they follow ratings."""
    if not isinstance(found, list) or not found:
        return ""
    rated = any("rating_error" in one for one in found)
    heads = '<th scope="col">error</th><th scope="col">correlation with ratings</th>' if rated else ""
    rows = ""
    for one in found:
        cells = [significant(one["weight"]), f"{significant(one['mean'])} ± {significant(one['deviation'])}"]
        for key in ("rating_error", "rating_correlation") if rated else ():
            cells.append(f"{significant(one[key]['value'])}{_interval(one[key], significant)}" if key in one else "–")
        rows += f'<tr><th scope="row">{escape(one["name"])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    return (
        '<div class="family"><h3>Scores <span class="unit">the combined score is their weighted sum</span></h3><table><thead><tr>'
        f'<th scope="col">score</th><th scope="col">weight</th><th scope="col">mean ± deviation</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _interval(found: dict[str, Any], text: Any) -> str:
    low, high = number(found.get("low")), number(found.get("high"))
    if low is None or high is None:
        return ""
    ends = [text(x, False) if text is percent else text(x) for x in (low, high)]
    return f' <span class="interval">{ends[0]}–{ends[1]}</span>'


def _dots(sure: float, right: float) -> str:
    """Return two shares as dots on a line from 0 to 1, one above the other."""
    drawn = "".join(
        f'<path class="{style} dot" d="M{10 + 980 * value:.0f} {y}h0"/>'
        for style, value, y in (("before", sure, 12), ("after", right, 28))
    )
    return (
        '<svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true"><path class="grid" d="M10 0V40M990 0V40"/>'
        f"{drawn}</svg>"
    )


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
