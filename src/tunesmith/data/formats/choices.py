"""choices: "question", "choices" and "answer" (an index from 0, a letter or the text): MMLU, ARC, HellaSwag, MedQA, ...

The choices are a list of strings ("choices", "options", "endings"), {"text": [...], "label": [...]}, {"A": ..., "B": ...},
or columns A, B, C, D of the row.
"""

from typing import Any

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Chat, Origin, Record
from tunesmith.errors import did_you_mean

RANK = 5
SHAPE = "question, choices, answer"
QUESTIONS = ("question", "question_stem", "ctx", "query", "prompt", "stem")
CHOICES = ("choices", "options", "endings")
ANSWERS = (
    "answer",
    "answerKey",
    "answer_key",
    "answer_index",
    "answer_idx",
    "label",
    "gold",
    "correct_answer",
    "target",
)
CONTEXTS = ("context", "passage", "article", "support")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIELDS = (*QUESTIONS, *CHOICES, *ANSWERS, *CONTEXTS, *LETTERS[:8])
SIGNS = (*CHOICES, "A")


def matches(row: dict[str, Any]) -> str | None:
    """Return why the row is of this format, None where it is not."""
    field = c.first_of(row, CHOICES)
    if field is None and not ("A" in row and "B" in row):
        return None
    question, answer = c.first_of(row, QUESTIONS), c.first_of(row, ANSWERS)
    if question is None or answer is None:
        return None
    if field is None:
        return f"has {question}, columns A, B, ... and {answer}"
    value = c.listed(row[field])
    texts = isinstance(value, list) and value and isinstance(value[0], str)
    return f"has {question}, {field} and {answer}" if texts or isinstance(value, dict) else None


def convert(row: dict[str, Any], origin: Origin) -> Record:
    """Return the row as a Chat: the question with its lettered choices, and the right one ("B. text") as the trained answer.

    Its extra fields say for evaluation which it is: "choices", a list of texts, and "answer_index", from 0.
    """
    c.no_media(row, origin)
    field = c.first_of(row, CHOICES)
    columns = () if field else tuple(name for name in LETTERS[:8] if row.get(name) is not None)
    value = c.listed(row[field]) if field else {name: row[name] for name in columns}
    if not field and not columns:
        c.required(row, "choices", origin)
    labels, texts = _choices(value, field or "A", origin)
    question = c.first_of(row, QUESTIONS) or "question"
    answered = c.first_of(row, ANSWERS) or "answer"
    index = _index(c.required(row, answered, origin), labels, texts, answered, origin)
    context = c.first_of(row, CONTEXTS)
    options = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    asked = [c.text(row, context, origin)] if context else []
    asked += [c.text(row, question, origin), options]
    messages = [c.turn("user", "\n\n".join(asked)), c.turn("assistant", f"{labels[index]}. {texts[index]}")]
    used = {
        question,
        answered,
        *(LETTERS[:8] if columns else ()),
        *([field] if field else []),
        *([context] if context else []),
    }
    extra = c.rest(row, used) | {"choices": texts, "answer_index": index}
    return Chat(messages, [False, True], origin, extra=extra)


def _choices(value: Any, field: str, origin: Origin) -> tuple[list[str], list[str]]:
    """Return the choices' labels (letters, where they have none) and texts."""
    labels: Any = None
    if isinstance(value, dict):
        pair = isinstance(value.get("text"), list)
        labels, value = (value.get("label"), value["text"]) if pair else (list(value), list(value.values()))
    if not isinstance(value, list) or len(value) < 2:
        raise c.wrong_type(origin, field, value, "a list of two choices at least")
    if labels is None:
        labels = list(LETTERS[: len(value)]) if len(value) <= len(LETTERS) else [str(i + 1) for i in range(len(value))]
    if not isinstance(labels, list) or len(labels) != len(value):
        raise c.wrong_type(origin, f"{field}.label", labels, f"a list of {len(value)} labels, one for each choice")
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise c.wrong_type(origin, f"{field}[{i}]", text, "a string")
    return [str(label) for label in labels], value


def _index(answer: Any, labels: list[str], texts: list[str], field: str, origin: Origin) -> int:
    """Return which choice is right: a number counts from 0; a string is a label, else a choice's text, else such a number."""
    if isinstance(answer, str):
        word = answer.strip()
        as_label = next((i for i, label in enumerate(labels) if label.lower() == word.rstrip(".)").lower()), None)
        if as_label is not None:
            return as_label
        if word in (stripped := [text.strip() for text in texts]):
            as_text = stripped.index(word)
            if word.isdecimal() and int(word) < len(texts) and int(word) != as_text:
                found = f'field "{field}" ({word}) may be a number or a choice; write the letter ({labels[as_text]}).'
                raise c.RowError(origin, field, "bad_value", found)
            return as_text
        answer = int(word) if word.isdecimal() else answer
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return answer
    hint = did_you_mean(answer, [*labels, *texts]) if isinstance(answer, str) and answer.strip() else ""
    found = f'field "{field}" is {c.shown(answer)}, none of the {len(texts)} choices; expected a letter, a choice or a number from 0.'
    raise c.RowError(origin, field, "bad_value", found + hint)
