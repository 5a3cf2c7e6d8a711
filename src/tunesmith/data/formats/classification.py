"""classification: "text" (or "sentence") and a short "label"; optional "instruction" before the text.

Files with other names, or without a header, say which column is which: columns: {text: 0, label: 1}; a source's
`labels: {0: negative, 1: positive}` says what a label is called.
"""

import math
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record

RANK = 16
SHAPE = "text, label"
TEXTS = ("text", "sentence")
LABELS = ("label_text", "label", "labels")
FIELDS = (*TEXTS, *LABELS, "instruction")
SIGNS = LABELS
_LONGEST = 60


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    text, label = c.first_of(row, TEXTS), c.first_of(row, LABELS)
    return f"has {text} and a short {label}" if text and label and _short(row[label]) else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: the instruction, if any, and the text are asked, the label is the trained answer."""
    c.no_media(row, origin)
    text, label = c.first_of(row, TEXTS) or "text", c.first_of(row, LABELS) or "label"
    instruction = c.optional_text(row, "instruction", origin)
    asked = c.text(row, text, origin)
    answer = _name(c.required(row, label, origin), label, origin)
    messages = [c.turn("user", f"{instruction}\n\n{asked}" if instruction else asked), c.turn("assistant", answer)]
    return Chat(messages, [False, c.answers(messages[1])], origin, extra=c.rest(row, (text, label, "instruction")))


def _short(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_short(item) and not isinstance(item, list) for item in value)
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _LONGEST and "\n" not in value)


def _name(value: Any, field: str, origin: Origin) -> str:
    """Return the label as words; several labels of one text are joined by commas."""
    if isinstance(value, list) and value:
        return ", ".join(_name(item, f"{field}[{i}]", origin) for i, item in enumerate(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):  # pandas writes NaN where there is none
        return str(int(value)) if value.is_integer() else f"{value:g}"
    if not isinstance(value, str):
        raise c.wrong_type(origin, field, value, "a label: a string or a number")
    return value
