"""ranked: a prompt and a list of answers with "ranks" (1 is best) or "scores" (more is better), or "ranked_answers", the best first.

The answers are strings, messages, lists of messages, or objects that carry their own rank or score (UltraFeedback's
completions with overall_score, Nectar's answers with rank). Equal ranks or scores are ties.
"""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.formats import _turns
from tunesmith.data.records import Message, Origin, Preference, Record

RANK = 4
SHAPE = "prompt, responses, ranks or scores"
BEST_FIRST = ("ranked_answers", "ranked_responses")
ANSWERS = ("responses", "answers", "completions", "outputs", "candidates")
RANKS = ("ranks", "rankings", "ranking", "rank")
SCORES = ("scores", "ratings", "rewards", "score")
TEXTS = ("response", "answer", "text", "completion", "output", "content")
OWN_RANKS = ("rank", "ranking")
OWN_SCORES = ("overall_score", "score", "rating", "reward", "fine-grained_score")
FIELDS = (*BEST_FIRST, *ANSWERS, *RANKS, *SCORES, *_turns.ASKED)
ALIKE = ("preference",)
SIGNS = (*BEST_FIRST, *ANSWERS)


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    listed = c.first_of(row, (*BEST_FIRST, *ANSWERS))
    if listed is None or _turns.prompt_field(row) is None:
        return None
    if listed in BEST_FIRST:
        return f"has {listed}"
    order = c.first_of(row, (*RANKS, *SCORES))
    if order and isinstance(c.listed(row[order]), list):
        return f"has {listed} with {order}"
    answers = row[listed]
    first = answers[0] if isinstance(answers, list) and answers else None
    own = c.first_of(first, (*OWN_RANKS, *OWN_SCORES)) if isinstance(first, dict) else None
    return f"has {listed}, each with its {own}" if own else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Preference, the best answer first."""
    field = c.first_of(row, (*BEST_FIRST, *ANSWERS)) or ANSWERS[0]
    listed = c.listed(c.required(row, field, origin))
    if not isinstance(listed, list):
        raise c.wrong_type(origin, field, listed, "a list of answers")
    if len(listed) < 2:
        found = f'field "{field}" has {len(listed)} answer{"s" * (len(listed) != 1)}; to prefer one takes two at least.'
        raise c.RowError(origin, field, "too_few_answers", found)
    prompt = _turns.prompt(row, origin)
    answers = [_answer(item, f"{field}[{i}]", origin) for i, item in enumerate(listed)]
    order, numbers = _numbers(row, listed, field, origin)
    used = {field, *_turns.asked_fields(row), *((order,) if order else ())}
    extra, tools = c.rest(row, used), c.tools(row, origin)
    if numbers is None:
        return Preference(prompt, answers, origin, None, tools, extra)
    best_first = sorted(range(len(answers)), key=lambda i: -numbers[i])  # a stable sort: ties stay as they came
    extra = {
        name: [value[i] for i in best_first] if _rates(value, len(answers)) else value for name, value in extra.items()
    }
    return Preference(prompt, [answers[i] for i in best_first], origin, [numbers[i] for i in best_first], tools, extra)


def _rates(value: Any, answers: int) -> bool:
    """Say whether a field holds a number for each answer: another rating of theirs, in their order."""
    return isinstance(value, list) and len(value) == answers and all(isinstance(v, int | float | None) for v in value)


def _answer(item: Any, where: str, origin: Origin) -> list[Message]:
    if isinstance(item, dict) and "role" not in item and "from" not in item:
        name = c.first_of(item, TEXTS)
        if name is None:
            expected = f"an answer: a string, a message, or an object with {', '.join(TEXTS)}"
            raise c.wrong_type(origin, where, item, expected)
        return _turns.answer(item[name], f"{where}.{name}", origin)
    return _turns.answer(item, where, origin)


def _numbers(
    row: dict[str, Any], listed: list[Any], field: str, origin: Origin
) -> tuple[str | None, list[float] | None]:
    """Return the field of ranks or scores, if any, and a number per answer, more being better; None for best-first lists."""
    order = c.first_of(row, (*SCORES, *RANKS))
    given = c.listed(row[order]) if order else None
    if order and isinstance(given, list):
        if len(given) != len(listed):
            found = (
                f'field "{order}" has {len(given)} numbers for {len(listed)} answers in "{field}"; give one for each.'
            )
            raise c.RowError(origin, order, "bad_value", found)
        sign = 1.0 if order in SCORES else -1.0
        return order, [0.0 + sign * c.number(value, f"{order}[{i}]", origin) for i, value in enumerate(given)]
    if field in BEST_FIRST:
        return None, None
    first = listed[0] if isinstance(listed[0], dict) else {}
    own = c.first_of(first, (*OWN_SCORES, *OWN_RANKS))
    if own is None:
        found = f'"{field}" says not which answer is best: give "scores" or "ranks", one for each, or call it "ranked_answers".'
        raise c.RowError(origin, field, "no_ranking", found)
    sign, numbers = 1.0 if own in OWN_SCORES else -1.0, []
    for i, item in enumerate(listed):
        try:
            value = c.required(item if isinstance(item, dict) else {}, own, origin)
            numbers.append(0.0 + sign * c.number(value, own, origin))
        except c.RowError as error:
            raise error.inside(f"{field}[{i}]") from None
    return None, numbers
