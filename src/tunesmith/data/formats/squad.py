"""squad: a "question" about a "context", and "answers" that are right, each a piece of it (Rajpurkar et al., 2016, arXiv 1606.05250).

A row is a question, its answers {"text": [...]}, a list of {"text"} or of strings; or an article of the published file,
"paragraphs" with a "context" and "qas" each.
"""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record

RANK = 17
SHAPE = "context, question, answers"
FIELDS = ("context", "question", "answers", "paragraphs")
SIGNS = ("answers", "paragraphs")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    paragraphs = row.get("paragraphs")
    first = paragraphs[0] if isinstance(paragraphs, list) and paragraphs else None
    if isinstance(first, dict) and "qas" in first:
        return "has paragraphs with qas"
    asked = isinstance(row.get("question"), str) and isinstance(row.get("context"), str)
    return "has context, question and answers" if asked and _is_answers(row.get("answers")) else None


def convert(row: dict[str, Any], origin: Origin) -> Record | list[Record]:
    """Return a Chat for each question: context and question are asked, the first of the answers is trained.

    All of them are kept in "answers", for evaluation. A question without one (SQuAD 2.0) has an empty answer, not trained.
    """
    c.no_media(row, origin)
    if "paragraphs" not in row:
        return _chat(row, c.text(row, "context", origin), "", c.rest(row, FIELDS[:3]), origin)
    made: list[Record] = []
    for i, paragraph in enumerate(c.objects(row["paragraphs"], "paragraphs", origin, "paragraphs")):
        place = f"paragraphs[{i}]"
        try:
            context, qas = c.text(paragraph, "context", origin), c.required(paragraph, "qas", origin)
        except c.RowError as error:
            raise error.inside(place) from None
        if not isinstance(qas, list):
            raise c.wrong_type(origin, f"{place}.qas", qas, "a list of questions")
        for j, one in enumerate(c.objects(qas, f"{place}.qas", origin, "questions") if qas else []):
            extra = {**c.rest(row, FIELDS), **c.rest(one, FIELDS)}
            made.append(_chat(one, context, f"{place}.qas[{j}].", extra, origin))
    return made


def _chat(row: dict[str, Any], context: str, place: str, extra: dict[str, Any], origin: Origin) -> Chat:
    try:
        question, answers = c.text(row, "question", origin), c.listed(c.required(row, "answers", origin))
    except c.RowError as error:
        raise error.inside(place[:-1]) if place else error from None
    if not _is_answers(answers):
        raise c.wrong_type(origin, f"{place}answers", answers, 'answers: {"text": [...]} or a list of strings')
    listed = answers["text"] if isinstance(answers, dict) else answers
    texts = [one["text"] if isinstance(one, dict) else one for one in listed]
    messages = [c.turn("user", f"{context}\n\n{question}"), c.turn("assistant", texts[0] if texts else "")]
    return Chat(messages, [False, c.answers(messages[1])], origin, extra=extra | {"answers": texts})


def _is_answers(value: Any) -> bool:
    value = c.listed(value)
    listed = value.get("text") if isinstance(value, dict) else value
    return isinstance(listed, list) and all(
        isinstance(one.get("text") if isinstance(one, dict) else one, str) for one in listed
    )
