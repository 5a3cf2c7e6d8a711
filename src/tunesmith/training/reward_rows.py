"""The rows of a reward model's run: each record's answers side by side, and what the record says of each attribute of each answer.

An attribute is rated in a field of its name: a number, or of several answers a list of numbers in their order; of a pair also "chosen",
"rejected" or "tie", or the two fields chosen_NAME and rejected_NAME.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.formats import _common as c
from tunesmith.data.records import Examples, Preference, Record, Verdict
from tunesmith.model import reward_config
from tunesmith.training import answers

Numbers = npt.NDArray[np.float64]
NONE = float("nan")
WORDS = {"chosen": [1.0, 0.0], "rejected": [0.0, 1.0], "tie": [0.5, 0.5]}
LABEL = "rated "  # before an attribute's name, among an example's constants
OWN = "score"  # the field that rates a row's answer where no attribute is named


def rows(
    examples: Examples, records: Sequence[Record], module: ModuleType, section: Mapping[str, Any]
) -> tuple[Examples, list[str]]:
    """Return the rendered examples with a row for each record, its ratings among the constants, and notices of records left out.

    section: the run's objective. RowError where a rating is no number, or a row that is to be rated has none.
    """
    compared = module.compares != "answers"
    named = [name for name, _ in reward_config.asked(section.get("attributes"))] if "attributes" in section else []

    def rated(record: Record) -> Numbers:
        return ratings(record, named) if compared or named else own_rating(record)

    def values(record: Record) -> Sequence[float]:
        scores, n = getattr(record, "scores", None), _answers(record)
        if scores is None or (named and not np.isnan(ratings(record, named)).all()):  # the ratings say who is compared
            return [NONE] * n
        return list(scores)

    found, said = answers.grouped(examples, records, values, compared)
    names = named or ([] if compared else [name for name, _ in reward_config.ONE])
    if not names:
        return found, said
    assert found.answer is not None
    table = np.full((len(found), len(names)), NONE, dtype=np.float32)
    for i, (record, answer) in enumerate(zip(found.record.tolist(), found.answer.tolist(), strict=True)):
        table[i] = rated(records[record])[answer]
        if not compared and np.isnan(table[i]).all():
            raise _unrated(records[record], names)
    constants = {LABEL + name: table[:, k].copy() for k, name in enumerate(names)}
    return replace(found, constants={**found.constants, **constants}), said


def ratings(record: Record, names: Sequence[str]) -> Numbers:
    """Return what a record says of each attribute of each of its answers, (answers, names), NaN where it says nothing."""
    table = np.full((_answers(record), len(names)), NONE)
    for k, name in enumerate(names):
        if (given := _given(record, name)) is not None:
            table[:, k] = given
    return table


def own_rating(record: Record) -> Numbers:
    """Return what a record says of its answers, (answers, 1): scores, a verdict as 1 or 0, or its field `score`."""
    if isinstance(record, Verdict):
        return np.array([[float(record.good)]])
    if isinstance(record, Preference):
        return np.array(record.scores if record.scores is not None else [NONE] * len(record.answers))[:, None]
    return ratings(record, [OWN])


def _answers(record: Record) -> int:
    return len(record.answers) if isinstance(record, Preference) else 1


def _given(record: Record, name: str) -> list[float] | None:
    extra, n = record.extra, _answers(record)
    pair = [f"{side}_{name}" for side in ("chosen", "rejected")]
    if n == 2 and all(extra.get(field) is not None for field in pair):
        return [_number(extra[field], field, record) for field in pair]
    value = c.listed(extra.get(name))
    if value is None:
        return None
    if n == 1:
        return [_number(value, name, record)]
    if n == 2 and isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    if isinstance(value, list) and len(value) == n:
        return [NONE if v is None else _number(v, f"{name}[{i}]", record) for i, v in enumerate(value)]
    words = ', or "chosen", "rejected" or "tie"' if n == 2 else ""
    raise c.wrong_type(record.origin, name, value, f"a list of {n} numbers, one for each answer{words}")


def _number(value: Any, field: str, record: Record) -> float:
    return float(value) if isinstance(value, bool) else c.number(value, field, record.origin)


def _unrated(record: Record, names: Sequence[str]) -> c.RowError:
    if names == [name for name, _ in reward_config.ONE]:
        field, said = OWN, f'has no rating: neither a field "{OWN}" nor scores of its answers'
    else:
        field, said = names[0], f"is rated by none of the attributes {', '.join(names)}"
    numbers = [k for k, v in record.extra.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    has = f" (its fields with numbers are {', '.join(numbers)})" if numbers else ""
    message = f"the row {said}; name the fields that rate it in objective.attributes{has}."
    return c.RowError(record.origin, field, "missing_field", message)
