"""prompt: a prompt whose answer the model finds itself, with a reference ("ground_truth", "reference", "solution", ...) or without one.

veRL's {"reward_model": {"ground_truth": ...}} has its reference there.

Also MT-bench's "turns": the first is asked, all of them are kept for evaluation. "question" and "answer" together are
prompt_completion, which trains on the answer; "problem" with "answer" or "solution" is a prompt with its reference.
"""

import json
from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Origin, Prompt, Record

RANK = 7
SHAPE = "prompt, ground_truth"
REFERENCES = (
    "ground_truth", "reference", "reference_answer", "expected_answer", "expected", "gold", "final_answer", "solution",
)  # fmt: skip
ANSWERED = frozenset((  # fields by which a row with a prompt is another format's, or none's
    "completion", "response", "answer", "output", "text", "chosen", "rejected", "responses", "answers", "completions", "generation",
    "outputs", "candidates", "inputs", "targets", "target", "instances", "label", "labels",
))  # fmt: skip
FIELDS = (*REFERENCES, *_turns.ASKED, "turns", "answer", "reward_model")
SIGNS = (*REFERENCES, "prompt", "problem", "turns")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    field, (reference, _) = _turns.prompt_field(row), _reference(row)
    if field in _turns.LISTS:
        return f"has {field} that end with a question, and {reference}" if reference and _asks(row[field]) else None
    if field == "problem" and reference == "answer":
        return "has problem and answer"
    if not ANSWERED.isdisjoint(row) and field != "problem":
        return None
    if field and reference:
        return f"has {field} and {reference}"
    if field == "prompt" and not c.first_of(row, _turns.LISTS):
        return "has prompt and no answer"
    turns = row.get("turns")
    strings = isinstance(turns, list) and turns and isinstance(turns[0], str)
    return "has turns of strings" if strings and not field else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Prompt; a reference that is a number or an object is written as JSON, of a list the first is taken."""
    reference, value = _reference(row)
    if _turns.prompt_field(row) is None and isinstance(row.get("turns"), list):
        c.no_media(row, origin)
        if not row["turns"] or not isinstance(row["turns"][0], str):
            raise c.wrong_type(origin, "turns", row["turns"], "a list of strings")
        messages, used = _turns.with_system(row, [c.turn("user", row["turns"][0])], origin), {*_turns.SYSTEMS, "tools"}
    else:
        messages, used = _turns.prompt(row, origin), _turns.asked_fields(row)
    if isinstance(value, list):
        value = value[0] if value else None  # the list stays among the extra fields: other right answers
    elif reference and reference != "reward_model":
        used = used | {reference}
    if value is not None and not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return Prompt(messages, origin, value, c.tools(row, origin), c.rest(row, used))


def _reference(row: dict[str, Any]) -> tuple[str | None, Any]:
    """Return the field of the reference and its value, (None, None) where there is none."""
    if "problem" in row and row.get("answer") is not None and row.get("ground_truth") is None:
        return "answer", row["answer"]
    field = c.first_of(row, REFERENCES)
    rule = row.get("reward_model")
    if field is None and isinstance(rule, dict) and rule.get("ground_truth") is not None:
        return "reward_model", rule["ground_truth"]
    return field, row.get(field or "")


def _asks(turns: Any) -> bool:
    """Say whether a list of turns ends with the user's."""
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and last.get("role", last.get("from")) in ("user", "human", "tool")
