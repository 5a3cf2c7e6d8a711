"""verdict: a prompt, one answer, and whether it is good in "label" (KTO), "kto_tag", "rating", ...: true, 1, "good", "thumbs up", ..."""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Origin, Record, Verdict

RANK = 6
SHAPE = "prompt, completion, label"
LABELS = ("label", "kto_tag", "good", "verdict", "desirable", "thumbs_up", "thumbs", "vote", "feedback", "rating")
ANSWERS = ("completion", "response", "answer", "output")
FIELDS = (*LABELS, *ANSWERS, *_turns.ASKED)
SIGNS = LABELS
GOOD = (
    "good", "true", "yes", "thumbs_up", "thumbsup", "up", "upvote", "upvoted", "like", "liked", "positive", "desirable",
    "accept", "accepted", "approved", "chosen", "helpful", "correct", "right", "1", "+1", "1.0", "👍",
)  # fmt: skip
BAD = (
    "bad", "false", "no", "thumbs_down", "thumbsdown", "down", "downvote", "downvoted", "dislike", "disliked", "negative",
    "undesirable", "reject", "rejected", "disapproved", "unhelpful", "incorrect", "wrong", "0", "-1", "0.0", "-1.0", "👎",
)  # fmt: skip
WORDS = dict.fromkeys(GOOD, True) | dict.fromkeys(BAD, False)


def judged(value: Any) -> bool | None:
    """Return what a verdict says (true, 1, "1", "good", "thumbs up"; false, 0, -1, "bad", ...), None where it is none."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        return WORDS.get(word[:1] if word[:1] in "👍👎" else word.replace(" ", "_"))
    return value == 1 if isinstance(value, (int, float)) and value in (-1, 0, 1) else None


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    label = c.first_of(row, LABELS)
    if label is None or judged(row[label]) is None or (label == "rating" and _star(row[label])):
        return None
    answer = c.first_of(row, (*_turns.LISTS, *ANSWERS))
    if answer is None or (answer in ANSWERS and _turns.prompt_field(row) is None):
        return None
    return f"has {answer} with {label}"


def _star(value: Any) -> bool:
    """Say whether a rating is a number, which may be one of five."""
    return not isinstance(value, bool) and str(value).strip()[:1].isdecimal()


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Verdict; of a conversation the last answer is judged."""
    label = c.first_of(row, LABELS) or LABELS[0]
    good = judged(c.required(row, label, origin))
    if good is None:
        expected = 'a verdict: true or false, 1 or 0, "good" or "bad" (where it is none, state the format, such as format: alpaca)'
        raise c.wrong_type(origin, label, row[label], expected)
    answered = c.first_of(row, ANSWERS)
    field = c.first_of(row, _turns.LISTS)
    if answered or field is None:
        prompt = _turns.prompt(row, origin)
        answered = answered or ANSWERS[0]
        answer = _turns.answer(c.required(row, answered, origin), answered, origin)
    else:
        c.no_media(row, origin)
        answered = field
        prompt, answer = _turns.parted(_turns.conversation(row[field], field, origin)[0], field, origin)
        prompt = _turns.with_system(row, prompt, origin)
    used = {label, *_turns.asked_fields(row), answered}
    return Verdict(prompt, answer, good, origin, c.tools(row, origin), c.rest(row, used))
