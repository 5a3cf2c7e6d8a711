"""The run file: sections of keyword arguments. Unknown keys, wrong types and impossible combinations are refused by name."""

import inspect
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tunesmith import registry
from tunesmith.arguments import Section, arguments, checked, named
from tunesmith.data.mixing import Mixing
from tunesmith.errors import InputError, did_you_mean

Positive = Annotated[int, Field(gt=0, lt=10**12)]


def _day(given: Any) -> str:
    """Return YYYY-MM-DD for such text, or for the date that YAML makes of it."""
    try:
        return date.fromisoformat(str(given)).isoformat()
    except ValueError as e:
        raise PydanticCustomError("day", "a date, as 2026-01-31") from e


class Model(Section):
    """Which model: `starter`, a local folder, a hub id or a run's folder."""

    path: str = "starter"


class Train(Section):
    """How long and in what portions. None is inferred from model, data and machine, and said aloud."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] | None = None
    max_steps: Positive | None = None
    tokens_per_step: Positive | None = None
    batch_size: Positive | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    schedule: Literal["cosine", "linear", "constant", "wsd"] | None = None
    warmup: Annotated[float, Field(ge=0)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    device: Literal["cpu", "cuda", "mps"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    microbatch_tokens: Positive | None = None
    activation_checkpointing: Literal["none", "selective", "full"] | None = None
    compile: bool = False
    date: Annotated[str, BeforeValidator(_day)] | None = None
    evaluate_every: Positive | None = None
    checkpoint_every: Positive | None = None
    keep_last: Positive = 2
    early_stopping: Positive | None = None
    max_bad_steps: Positive = 5


SHORT = {
    "model": "path",
    "objective": "name",
    "adapter": "name",
    "optimizer": "name",
    "validation": "path",
}  # `model: x` means `model: {path: x}`
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
    """One run. `objective`, `adapter`, `optimizer` and each of `evaluate` and `track` are {name, and that thing's keyword arguments}.

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
    train: Train = Train()
    evaluate: list[dict[str, Any]] = Field(default=[])
    track: list[dict[str, Any]] = Field(default=[])
    output: Annotated[str, Field(min_length=1)] | None = None

    def mixed(self, where: str = "the run") -> Mixing:
        """Return `mixing`, checked."""
        return Mixing(**arguments(Mixing, self.mixing or {}, f"{where}: mixing", ()))


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is a mistake, not the second one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f'the key "{key.value}" is given twice', problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_file(path: str) -> dict[str, Any]:
    """Read a run file (safe YAML) as plain data; InputError names the file and the line."""
    file = Path(path)
    if file.is_dir():
        file = file / "run.yaml"
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise InputError(f"there is no run file {path}.{did_you_mean(file.name, siblings)}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}.") from e
    except RecursionError as e:
        raise InputError(f"{path}: this is no YAML for a run file (nested too deeply).") from e
    except (yaml.YAMLError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(e, "problem", None) or (
            "not UTF-8 text" if isinstance(e, UnicodeDecodeError) else str(e).splitlines()[0]
        )
        raise InputError(f"{path}{where}: this is no YAML for a run file ({reason}).") from e
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: a run file is a mapping of sections (model, data, objective, ...), not {_kind(content)}."
        )
    return content


def assign(content: dict[str, Any], setting: str) -> None:
    """Apply one `--set section.key=value` to the run file's data in place; the value is read as YAML."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f'--set takes section.key=value, found "{setting}".')
    *parents, last = key.split(".")
    node: Any = content
    for i, part in enumerate(parents):
        if isinstance(node.get(part), str) and part in SHORT and i == 0:
            node[part] = {SHORT[part]: node[part]}
        child = node.setdefault(part, {})
        if isinstance(child, list):
            raise InputError(f"--set {key}: {part} is a list; give the whole of it, as in --set '{part}=[…]'.")
        if not isinstance(child, dict):
            child = node[part] = {}
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InputError(f'--set {key}: "{text[:80]}" is no YAML value.') from e


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
    train = config.train
    if train.batch_size and train.tokens_per_step:
        raise InputError(f"{where}: train.batch_size (rows) and train.tokens_per_step exclude each other; keep one.")
    if train.epochs and train.max_steps:
        raise InputError(f"{where}: train.epochs and train.max_steps exclude each other; keep one.")
    if config.validation is False and train.early_stopping:
        raise InputError(f"{where}: train.early_stopping watches the validation loss, but validation is false.")
    if config.validation is False and config.evaluate:
        raise InputError(f"{where}: evaluate measures on the validation rows, but validation is false.")
    if config.adapter and "from" in config.adapter:
        if set(config.adapter) != {"from"}:
            raise InputError(f"{where}: adapter.from continues an adapter as it is; take the other adapter keys away.")
        if not isinstance(config.adapter["from"], str):
            raise InputError(
                f"{where}: adapter.from should be an adapter's or a run's folder, found {config.adapter['from']!r}."
            )


def _check_named(config: RunConfig, where: str) -> RunConfig:
    """Return the run with the arguments of every named thing checked against its signature, and converted."""
    found: dict[str, Any] = {}
    if config.adapter is not None and "from" not in config.adapter:
        found["adapter"] = _named(config.adapter, "model.adapters", "attach", "adapter", where, ("model",))
    found["objective"] = _named(
        config.objective, "training.objectives", "loss", "objective", where, ("logps", "weights")
    )
    found["evaluate"] = [
        _named(metric, "evaluation.metrics", "score", f"evaluate[{i}]", where, ("item",))
        for i, metric in enumerate(config.evaluate)
    ]
    found["optimizer"] = _optimizer(config.optimizer, where)
    found["track"] = [_tracker(tracker, f"track[{i}]", where) for i, tracker in enumerate(config.track)]
    names = [tracker["name"] for tracker in found["track"]]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where}: track names {twice} twice; once is enough.")
    return config.model_copy(update={k: v for k, v in found.items() if k in config.model_fields_set})


def _check_tasks(config: RunConfig, where: str) -> None:
    """InputError where a set's own objective is another sum than the run's: one step adds all of them up."""
    name = config.objective["name"]
    for i, entry in enumerate(config.data):
        own = entry.get("objective") or name
        losses = [registry.load("training.objectives", n).loss for n in (name, own)]
        if own != name and len({inspect.getsource(loss) for loss in losses}) > 1:
            raise InputError(
                f"{where}: data[{i}].objective {own} and the run's {name} have different losses, which one run cannot add up yet; "
                "make them two runs, one after the other."
            )


def _named(
    section: Mapping[str, Any], package: str, function: str, key: str, where: str, skip: tuple[str, ...]
) -> dict[str, Any]:
    return {"name": section.get("name"), **named(section, package, function, key, where, skip)}


def _optimizer(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    from tunesmith.training.optimizers import OPTIMIZERS

    name = section["name"]
    if name not in OPTIMIZERS:
        raise InputError(
            f'{where}: optimizer.name: there is no optimizer "{name}".{did_you_mean(str(name), OPTIMIZERS)}'
        )
    given = {k: v for k, v in section.items() if k != "name"}
    return {
        "name": name,
        **arguments(OPTIMIZERS[name], given, f"{where}: optimizer", ("masters",), inferred=("learning_rate",)),
    }


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


def _kind(value: Any) -> str:
    return {"NoneType": "empty", "str": "text", "list": "a list"}.get(type(value).__name__, type(value).__name__)
