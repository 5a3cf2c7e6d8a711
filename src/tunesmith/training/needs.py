"""What an objective's options ask of the rows: an option that no row has anything for would do nothing, and nobody would know."""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from tunesmith.data.records import Preference, Record
from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import reward_config
from tunesmith.training import reward_rows


def check(records: Iterable[Record], module: ModuleType, section: Mapping[str, Any]) -> None:
    """InputError where the training `records` have no scores for an option that goes by them, or none is rated by an attribute.

    module: the objective's, whose `needs_scores` names such options; section: the run's objective. Reads no further than it has to.
    """
    names = [name for name, _ in reward_config.asked(section["attributes"])] if section.get("attributes") else []
    option = next((name for name in getattr(module, "needs_scores", ()) if section.get(name)), None)
    if names and module.compares == "pairs":
        _check_rated(records, names)
    elif option is not None and not any(isinstance(r, Preference) and r.scores is not None for r in records):
        raise InputError(
            f"objective.{option} goes by how far the scores of two answers are apart, and no row has scores; give score_chosen and "
            f"score_rejected, or a list's scores, or leave objective.{option} out."
        )


def _check_rated(records: Iterable[Record], names: list[str]) -> None:
    missing, fields = dict.fromkeys(names), dict[str, None]()
    for record in (r for r in records if isinstance(r, Preference)):
        for name in [n for n in missing if not np.isnan(reward_rows.ratings(record, [n])).all()]:
            del missing[name]
        if not missing:
            return
        fields |= dict.fromkeys(record.extra)
    name = next(iter(missing))
    hint = did_you_mean(name, list(fields)) if fields else ""
    raise InputError(
        f'objective.attributes: no row rates "{name}"; a row does in a field of that name: "chosen", "rejected" or "tie", or a number for '
        f"each answer.{hint}"
    )
