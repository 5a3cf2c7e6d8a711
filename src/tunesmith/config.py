"""The run file: sections of keyword arguments. Unknown keys, wrong types and impossible combinations are refused by name."""

import inspect
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tunesmith import registry
from tunesmith.arguments import Section, arguments, checked, named
from tunesmith.data.mixing import Mixing
from tunesmith.errors import InputError, did_you_mean
from tunesmith.model import stacking
from tunesmith.model.quantize import Name as Quantize
from tunesmith.model.quantize import Quantization
from tunesmith.run_file import SHORT

Positive = Annotated[int, Field(gt=0, lt=10**12)]


def _day(given: Any) -> str:
    """Return YYYY-MM-DD for such text, or for the date that YAML makes of it."""
    try:
        return date.fromisoformat(str(given)).isoformat()
    except ValueError as e:
        raise PydanticCustomError("day", "a date, as 2026-01-31") from e


def _clip(given: Any) -> Any:
    """Return False, no clipping, for nothing too: what is unset is left out of run.yaml, and would come back as the default."""
    return False if given is None else given


def _recomputed(given: Any) -> Any:
    """Return one of the words, or the number n of "every n-th layer"."""
    number = isinstance(given, int) and not isinstance(given, bool) and given > 0
    if number or given in ("none", "selective", "full", None):
        return given
    raise PydanticCustomError("recomputed", "none, selective, full or a whole number n (every n-th layer)")


def _tokens(given: Any) -> list[str]:
    """Return the tokens of a list, or of a file with one per line; InputError for what can be none."""
    if isinstance(given, str):
        try:
            lines = Path(given).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else "it is no UTF-8 text"
            raise InputError(f"model.new_tokens: the file {given} of one token per line cannot be read ({why}).") from e
        given = [line.strip() for line in lines if line.strip()]
    if not isinstance(given, list) or not given:
        raise PydanticCustomError("tokens", "a list of new tokens, or a file with one per line")
    seen: set[str] = set()
    for token in given:
        if not isinstance(token, str) or not token.strip() or token != token.strip():
            raise PydanticCustomError("tokens", "a list of texts that neither begin nor end with a space")
        if token in seen:
            raise InputError(f'model.new_tokens names "{token}" twice; once is enough.')
        seen.add(token)
    return list(given)


class Model(Section):
    """Which model: `starter`, a local folder, a hub id or a run's folder.

    new_tokens are added to its tokenizer and their rows trained: a list, or a file with one per line.
    """

    path: str = "starter"
    new_tokens: Annotated[list[str], BeforeValidator(_tokens)] | None = None
    quantize: Quantize | None = None
    double_quantization: bool | None = None


class Train(Section):
    """How long and in what portions. None is inferred from model, data and machine, and said aloud."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] | None = None
    max_steps: Positive | None = None
    tokens_per_step: Positive | None = None
    batch_size: Positive | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    schedule: str | dict[str, Any] | None = None
    warmup: Annotated[float, Field(ge=0)] | None = None
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | Literal[False], BeforeValidator(_clip)] = 1.0
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    device: Literal["cpu", "cuda", "mps"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    microbatch_tokens: Positive | None = None
    activation_checkpointing: Annotated[Any, BeforeValidator(_recomputed)] = None
    activation_offload: bool | None = None
    optimizer_in_backward: bool = False
    compile: bool = False
    fused: bool = True
    date: Annotated[str, BeforeValidator(_day)] | None = None
    evaluate_every: Positive | None = None
    checkpoint_every: Positive | None = None
    keep_last: Positive = 2
    early_stopping: Positive | None = None
    max_bad_steps: Positive = 5


DEFAULTS = {"objective": "sft", "optimizer": "adamw"}  # the name where only its arguments are given


class Validation(Section):
    """What the run is measured on: a fraction of the data, or rows of their own."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    path: str | Annotated[list[str], Field(min_length=1)] | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    kind: Literal["text", "chat", "preference", "verdict", "prompt"] | None = Field(default=None, alias="as")
    name: str | None = None
    split: str | None = None


class RunConfig(Section):
    """One run. `objective`, `adapter`, `optimizer`, `regularizer`, each of `evaluate` and `track`: {name, and its keyword arguments}.

    `prepare` is {step: true, false or its options}, `mixing` the keyword arguments of data.mixing.Mixing.
    """

    model: Model = Model()
    data: list[dict[str, Any]] = Field(default=[])
    prepare: dict[str, Any] | None = None
    mixing: dict[str, Any] | None = None
    validation: dict[str, Any] | Literal[False] = Field(default={})
    objective: dict[str, Any] = Field(default={"name": DEFAULTS["objective"]})
    adapter: dict[str, Any] | None = None
    optimizer: dict[str, Any] = Field(default={"name": DEFAULTS["optimizer"]})
    regularizer: dict[str, Any] | None = None
    train: Train = Train()
    evaluate: list[dict[str, Any]] = Field(default=[])
    track: list[dict[str, Any]] = Field(default=[])
    output: Annotated[str, Field(min_length=1)] | None = None

    def quantization(self) -> Quantization | None:
        """Return how the base is quantised, None where it is not. Double quantisation is the default."""
        name = self.model.quantize
        return None if name in (None, "none") else Quantization(str(name), self.model.double_quantization is not False)

    def mixed(self, where: str = "the run") -> Mixing:
        """Return `mixing`, checked."""
        return Mixing(**arguments(Mixing, self.mixing or {}, f"{where}: mixing", ()))


def parse(content: Mapping[str, Any], where: str = "the run file") -> RunConfig:
    """Return the checked run; InputError in one sentence for the first thing that is wrong."""
    content = {k: v for k, v in content.items() if v is not None}
    for section, key in SHORT.items():
        if isinstance(content.get(section), str):
            content[section] = {key: content[section]}
    for section, name in DEFAULTS.items():
        if isinstance(content.get(section), Mapping):
            content[section] = {"name": name, **content[section]}
    for section, key in (("data", "path"), ("evaluate", "name"), ("track", "name")):
        if isinstance(content.get(section), str | dict):
            content[section] = [content[section]]
        if isinstance(content.get(section), list):
            content[section] = [{key: item} if isinstance(item, str) else item for item in content[section]]
    if content.get("validation") is True:
        content["validation"] = {}
    if isinstance(content.get("prepare"), bool):  # true: the steps that run without being asked
        content["prepare"] = {} if content["prepare"] else None
    _check_misplaced(content, where)
    config = checked(RunConfig, content, where)
    _check_data(config, where)
    _check_combinations(config, where)
    found = _check_named(config, where)
    _check_tasks(found, where)
    return found


def _check_misplaced(content: Mapping[str, Any], where: str) -> None:
    """InputError naming the right place for what other tools write elsewhere."""
    mixing, validation = content.get("mixing"), content.get("validation")
    keys = mixing if isinstance(mixing, Mapping) else ()
    own = next((key for key in ("weight", "cap", "general", "objective") if key in keys), None)
    if own:
        raise InputError(f"{where}: mixing.{own} is said of each set: data: [{{path: rows.jsonl, {own}: ...}}].")
    if isinstance(validation, float) and 0 < validation < 1:
        raise InputError(f"{where}: validation is {validation}; say validation: {{fraction: {validation}}}.")


def _check_data(config: RunConfig, where: str) -> None:
    from tunesmith.data import mixing, sources

    try:
        parsed = sources.parse(config.data or "none")
    except InputError as e:
        raise InputError(f"{where}: {e}") from e
    mixing.check(config.mixed(where), [source.share for source in parsed] if config.data else [], where)
    if config.prepare is not None:
        _check_prepare(config.prepare, config.validation, where)
    if config.validation is not False:
        checked(Validation, config.validation, f"{where}: validation")
        if "path" in config.validation and "fraction" in config.validation:
            raise InputError(
                f"{where}: validation.fraction draws rows from the data, validation.path brings its own; keep one."
            )
        if "path" not in config.validation and set(config.validation) - {"fraction"}:
            raise InputError(f"{where}: validation.{min(set(config.validation) - {'fraction'})} needs validation.path.")


def _check_prepare(section: dict[str, Any], validation: dict[str, Any] | Literal[False], where: str) -> None:
    from tunesmith.data.prepare import check_section

    check_section(section, f"{where}: prepare")
    split = section.get("split")
    if isinstance(split, dict) and validation != {}:
        raise InputError(f"{where}: prepare.split and validation both say which rows are held out; keep one.")
    if isinstance(split, dict) and split.get("folds"):
        raise InputError(
            f"{where}: prepare.split.folds makes sets for cross-validation, and a run trains on one; make them with "
            "`tunesmith data prepare`, then give a run one fold's files."
        )


def _check_combinations(config: RunConfig, where: str) -> None:
    train, name = config.train, config.model.quantize
    if config.model.double_quantization is not None and name not in ("nf4", "fp4"):
        raise InputError(
            f"{where}: model.double_quantization goes with model.quantize nf4 or fp4, not with {name or 'none'}."
        )
    if train.batch_size and train.tokens_per_step:
        raise InputError(f"{where}: train.batch_size (rows) and train.tokens_per_step exclude each other; keep one.")
    if train.activation_offload and train.compile:
        raise InputError(f"{where}: train.activation_offload and train.compile exclude each other; keep one.")
    if train.optimizer_in_backward:
        _check_in_backward(config, where)
    if train.epochs and train.max_steps:
        raise InputError(f"{where}: train.epochs and train.max_steps exclude each other; keep one.")
    if config.validation is False and train.early_stopping:
        raise InputError(f"{where}: train.early_stopping watches the validation loss, but validation is false.")
    if config.validation is False and config.evaluate:
        raise InputError(f"{where}: evaluate measures on the validation rows, but validation is false.")
    if config.adapter and "from" in config.adapter:
        if others := ", ".join(f"adapter.{key}" for key in config.adapter if key != "from"):
            raise InputError(f"{where}: adapter.from continues an adapter as it is; take {others} away.")
        if not isinstance(config.adapter["from"], str):
            raise InputError(
                f"{where}: adapter.from should be an adapter's or a run's folder, found {config.adapter['from']!r}."
            )


def _check_in_backward(config: RunConfig, where: str) -> None:
    """InputError for what needs all gradients of a step at once."""
    train, key = config.train, f"{where}: train.optimizer_in_backward"
    if train.clip_norm:
        raise InputError(
            f"{key} steps each weight before the norm of all gradients is known, so nothing can be clipped by it; set "
            "train.clip_norm: false."
        )
    if train.dtype == "float16":
        raise InputError(f"{key} cannot take back a step that overflows, as float16's do; set train.dtype: bfloat16.")
    if config.regularizer is not None:
        raise InputError(f"{key} steps each weight before the regularizer adds its gradient; take one of the two away.")


def _check_named(config: RunConfig, where: str) -> RunConfig:
    """Return the run with the arguments of every named thing checked against its signature, and converted."""
    found: dict[str, Any] = {}
    if config.adapter is not None and "from" not in config.adapter:
        own, laid = stacking.split(config.adapter, where)
        found["adapter"] = {**_named(own, "model.adapters", "attach", "adapter", where, ("model",)), **laid}
    found["objective"] = _objective(config.objective, where)
    found["evaluate"] = [
        _named(metric, "evaluation.metrics", "score", f"evaluate[{i}]", where, ("item",))
        for i, metric in enumerate(config.evaluate)
    ]
    found["optimizer"] = _named(
        config.optimizer, "training.optimizers", "make", "optimizer", where, ("masters", "ratios"), ("learning_rate",)
    )
    if config.train.schedule is not None:
        found["train"] = config.train.model_copy(update={"schedule": _schedule(config, where)})
    if config.regularizer is not None:
        found["regularizer"] = _named(config.regularizer, "training.regularizers", "make", "regularizer", where, ())
        _check_regularizer(config, where)
    found["track"] = [_tracker(tracker, f"track[{i}]", where) for i, tracker in enumerate(config.track)]
    names = [tracker["name"] for tracker in found["track"]]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where}: track names {twice} twice; once is enough.")
    return config.model_copy(update={k: v for k, v in found.items() if k in config.model_fields_set})


def _objective(section: dict[str, Any], where: str) -> dict[str, Any]:
    from tunesmith.training import make_objective

    return make_objective.check(section, where)


def _check_regularizer(config: RunConfig, where: str) -> None:
    """InputError for an optimizer whose averages a pull of the weights themselves would leave out."""
    assert config.regularizer is not None
    if config.regularizer["name"] == "decay_to_base" and config.optimizer["name"] == "schedule_free":
        raise InputError(
            f"{where}: regularizer decay_to_base pulls the trained weights back, which schedule_free makes anew of others at every step; "
            "take regularizer kl_to_base, or optimizer adamw."
        )


def _schedule(config: RunConfig, where: str) -> str | dict[str, Any]:
    """Return train.schedule, checked; InputError where the optimizer goes with another alone."""
    from tunesmith.training import schedules

    asked, name = config.train.schedule, config.optimizer["name"]
    assert asked is not None
    found = schedules.checked(asked, f"{where}: train.schedule")
    only = getattr(registry.load("training.optimizers", name), "SCHEDULE", None)
    if only and found != only:
        raise InputError(
            f"{where}: train.schedule is {schedules.name_of(found)}, but {name} goes with {only} alone: its averages take a falling "
            "rate's place; take train.schedule away."
        )
    return found


def _check_tasks(config: RunConfig, where: str) -> None:
    """InputError where a set's own objective is another sum than the run's: one step adds all of them up."""
    name = config.objective["name"]
    for i, entry in enumerate(config.data):
        own = entry.get("objective") or name
        modules = [registry.load("training.objectives", n) for n in (name, own)]
        compare = any(hasattr(module, "compares") for module in modules)
        if own != name and (compare or len({inspect.getsource(module.loss) for module in modules}) > 1):
            raise InputError(
                f"{where}: data[{i}].objective {own} and the run's {name} have different losses, which one run cannot add up yet; "
                "make them two runs, one after the other."
            )


def _named(
    section: Mapping[str, Any],
    package: str,
    function: str,
    key: str,
    where: str,
    skip: tuple[str, ...],
    inferred: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {"name": section.get("name"), **named(section, package, function, key, where, skip, inferred)}


def _tracker(section: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    name, known = section.get("name"), registry.names("tracking")
    if not isinstance(name, str):
        raise InputError(f"{where}: {key} needs a name, one of {', '.join(known)}.")
    if name not in known:
        raise InputError(f'{where}: {key}.name: there is no tracker "{name}".{did_you_mean(name, known)}')
    module = registry.load("tracking", name)
    try:
        module.check()
    except InputError as e:
        raise InputError(f"{where}: {key}: {e}") from e
    return {"name": name, **named(section, "tracking", "start", key, where, ("begin",))}
