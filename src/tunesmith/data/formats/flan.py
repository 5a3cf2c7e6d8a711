"""flan: "inputs" and "targets" (FLAN, P3; BIG-bench's "input" and "target"), optional "rationale" before the target (FLAN's CoT sets)."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record

RANK = 14
SHAPE = "inputs, targets"
INPUTS = ("inputs_pretokenized", "inputs", "input")  # P3 has its tokens under "inputs"
TARGETS = ("targets_pretokenized", "targets", "target")
FIELDS = (*INPUTS, *TARGETS, "definition", "rationale")
SIGNS = TARGETS


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    given, wanted = c.first_of(row, INPUTS), c.first_of(row, TARGETS)
    return f"has {given} and {wanted}" if given and wanted else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat; with a rationale the answer is it, then "The answer is TARGET." on a line of its own.

    A "definition" of the task (Natural Instructions) stands before the inputs, a blank line between.
    """
    c.no_media(row, origin)
    given, wanted = c.first_of(row, INPUTS) or "inputs", c.first_of(row, TARGETS) or "targets"
    asked, answer = c.text(row, given, origin), c.text(row, wanted, origin)
    definition = c.optional_text(row, "definition", origin)
    asked = f"{definition}\n\n{asked}" if definition else asked
    rationale = c.optional_text(row, "rationale", origin)
    if rationale:
        answer = f"{rationale}\nThe answer is {answer.rstrip('.')}."
    messages = [c.turn("user", asked), c.turn("assistant", answer)]
    return Chat(
        messages, [False, c.answers(messages[1])], origin, extra=c.rest(row, (given, wanted, "definition", "rationale"))
    )
