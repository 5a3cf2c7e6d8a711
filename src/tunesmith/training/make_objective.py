"""The run file's section `objective` -> what a step asks of it.

A loss's signature is its schema, with what all losses of its kind can have.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tunesmith import registry
from tunesmith.arguments import arguments, named
from tunesmith.model import reward_config
from tunesmith.training.reference import START, Option

if TYPE_CHECKING:
    from tunesmith.training.objective import Objective

Share = Annotated[float, Field(ge=0)]
SEEN = ("logps", "weights", "pairs", "lists", "verdicts", "scores")  # a loss's parameters that are not the user's


def _of_pairs(
    *, sft: Share = 0.0, weighted: bool = False, desensitise: Annotated[float, Field(ge=0, le=1)] | None = None
) -> None:
    """What every objective over pairs can have."""


def _of_whole_steps(*, sft: Share = 0.0, desensitise: Annotated[float, Field(ge=0, le=1)] | None = None) -> None:
    """What one can have that is no sum over pairs, which a pair's weight could change."""


def _of_lists(*, sft: Share = 0.0) -> None:
    """What every objective over ranked lists can have."""


def _with_reference(*, reference: Option = START) -> None:
    """What every objective with a reference can have: start, none or a model."""


def _named(given: Any) -> Any:
    weighs = isinstance(given, Mapping) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) for w in given.values()
    )
    if weighs or given is None or isinstance(given, str | list):
        return given
    raise PydanticCustomError("attributes", "names, or weights by name as {helpful: 0.7, harmless: 0.3}")


Attributes = Annotated[str | list[str] | dict[str, float] | None, BeforeValidator(_named)]


def _of_rewards(*, attributes: Attributes = None) -> None:
    """What every objective of a reward model can have: what is scored, and the weight of each in the combined score."""


def _options(module: ModuleType) -> list[Callable[..., None]]:
    if getattr(module, "model", None) == "reward":
        return [_of_rewards]
    found: list[Callable[..., None]] = []
    match getattr(module, "compares", None):
        case "pairs":
            found.append(_of_whole_steps if getattr(module, "whole_step", False) else _of_pairs)
        case "lists":
            found.append(_of_lists)
    return [*found, *([_with_reference] if getattr(module, "reference", False) else [])]


def check(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the section with its arguments checked and converted; InputError for the first that is wrong."""
    found = {"name": section.get("name")}
    named(section, "training.objectives", None, "objective", where)
    module = registry.load("training.objectives", section["name"])
    given = {k: v for k, v in section.items() if k != "name"}
    found |= arguments(_schema(module), given, f"{where}: objective", SEEN)
    if hasattr(module, "check"):  # what no argument's type alone can say
        module.check(given, f"{where}: objective")
    if "attributes" in found:
        reward_config.asked(found["attributes"], f"{where}: objective.attributes")
    return found


def _schema(module: ModuleType) -> Callable[..., Any]:
    """Return what has the signature of the loss and of the options."""
    parts = [module.loss, *_options(module)]
    parameters = {p.name: p for part in parts for p in inspect.signature(part).parameters.values()}

    def schema() -> None: ...

    keyword = inspect.Parameter.KEYWORD_ONLY
    schema.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in parameters.values()])  # type: ignore[attr-defined]
    return schema


def make(section: Mapping[str, Any]) -> "Objective":
    """Return the objective of a section that was checked."""
    from tunesmith.training.compared import Compared
    from tunesmith.training.judged import Judged
    from tunesmith.training.objective import Objective
    from tunesmith.training.rewarded import Rewarded

    module = registry.load("training.objectives", section["name"])
    own = inspect.signature(module.loss).parameters
    asked = {k: v for k, v in section.items() if k != "name"}
    function = partial(module.loss, **{k: v for k, v in asked.items() if k in own})
    options = {k: v for k, v in asked.items() if k not in own and k != "reference"}
    if getattr(module, "model", None) == "reward":
        return Rewarded(module, function)
    match getattr(module, "compares", None):
        case "pairs" | "lists":
            return Compared(module, function, **{"sft": getattr(module, "sft", 0.0), **options})
        case "verdicts":
            return Judged(module, function)
    return Objective(function)
