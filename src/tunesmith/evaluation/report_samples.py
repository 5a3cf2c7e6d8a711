"""Answers before and after training, side by side."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from tunesmith.evaluation.report_run import number

OPEN, MOST, LONGEST = 8, 60, 4000  # samples shown at once, samples kept, characters kept of a text


def samples_section(samples: object) -> str:
    """Return the samples of results.json as HTML, one category after another in turn; '' if there are none."""
    usable = [sample for sample in samples if isinstance(sample, dict)] if isinstance(samples, list) else []
    if not usable:
        return ""
    chosen = in_turn(usable)[:MOST]
    html = "".join(_sample(sample) for sample in chosen[:OPEN])
    if len(chosen) > OPEN:
        rest = "".join(_sample(sample) for sample in chosen[OPEN:])
        html += f"<details><summary>{len(chosen) - OPEN} more</summary>{rest}</details>"
    left_out = f" {len(usable) - MOST} more are in results.json." if len(usable) > MOST else ""
    order = "each family in turn, " if any(sample.get("category") for sample in usable) else ""
    return f'<p class="note">Held-out prompts, {order}not picked by score.{left_out}</p>{html}'


def in_turn(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples reordered: the first of each category, then the second of each, and so on."""
    seen: dict[object, int] = {}
    places = []
    for sample in samples:
        category = str(sample.get("category"))
        places.append(seen.get(category, 0))
        seen[category] = places[-1] + 1
    return [samples[i] for i in sorted(range(len(samples)), key=lambda i: places[i])]


def _sample(sample: dict[str, Any]) -> str:
    category = sample.get("category")
    kind = f'<p class="category">{escape(str(category).replace("_", " "))}</p>' if category else ""
    # a run that has not ended has only the answers before training, under "answer" and "score"
    before, score = sample.get("before", sample.get("answer")), sample.get("before_score", sample.get("score"))
    answers = [_answer("Before", before, number(score), "before")]
    if "after" in sample:
        answers.append(_answer("After", sample["after"], number(sample.get("after_score")), "after"))
    if sample.get("reference") is not None:
        answers.insert(0, _answer("Reference", sample["reference"], None, "reference"))
    return (
        f'<article class="sample">{kind}<div class="prompt">{_prompt(sample.get("prompt"))}</div>'
        f'<div class="answers">{"".join(answers)}</div></article>'
    )


def _prompt(messages: object) -> str:
    if not isinstance(messages, list):
        return _text(messages)
    parts = []
    for message in messages:
        of = message if isinstance(message, dict) else {"content": message}
        role = str(of.get("role", "user"))
        label = "" if len(messages) == 1 and role == "user" else f'<span class="role">{escape(role)}</span>'
        parts.append(f'<div class="turn">{label}{_text(_content(of))}</div>')
    return "".join(parts)


def _content(message: dict[str, Any]) -> str:
    """Return a message's text; an image or a sound is named, a tool call is written out."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        content = "\n".join(str(part.get("text", f"[{part.get('type', 'part')}]")) for part in parts)
    if message.get("tool_calls"):
        content = f"{content or ''}\n{json.dumps(message['tool_calls'], ensure_ascii=False)}".strip()
    return "" if content is None else str(content)


def _answer(heading: str, text: object, score: float | None, side: str) -> str:
    return f'<div class="answer {side}"><h4>{heading}{_mark(score)}</h4>{_text(text)}</div>'


def _mark(score: float | None) -> str:
    if score is None:
        return ""
    if score >= 1:
        return ' <span class="verdict better">✓ right</span>'
    if score <= 0:
        return ' <span class="verdict worse">✗ wrong</span>'
    return f' <span class="verdict">{score:.2f}</span>'


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    if not text.strip():
        return '<div class="text empty">(empty)</div>'
    more = f"… ({len(text) - LONGEST:,} more characters)" if len(text) > LONGEST else ""
    return f'<div class="text" dir="auto">{escape(text[:LONGEST])}{more}</div>'
