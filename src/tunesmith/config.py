"""The run file: sections of keyword arguments. Unknown keys, wrong types and impossible combinations are refused by name."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from tunesmith import registry
from tunesmith.errors import InputError, did_you_mean

T = TypeVar("T", bound=BaseModel)
Positive = Annotated[int, Field(gt=0)]


def _strict_number(value: Any) -> Any:
    """YAML 1.1 reads 2e-4 as text, so text that is a number passes; true and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_strict_number)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Model(Section):
    """Which model: `starter`, a local folder, a hub id or a run's folder."""

    path: str = "starter"


class Train(Section):
    """How long and in what portions. None is inferred from model, data and machine, and said aloud."""

    epochs: Annotated[Number, Field(gt=0)] | None = None
    max_steps: Positive | None = None
    tokens_per_step: Positive | None = None
    batch_size: Positive | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    schedule: Literal["cosine", "linear", "constant", "wsd"] | None = None
    warmup: Annotated[Number, Field(ge=0)] | None = None
    clip_norm: Annotated[Number, Field(gt=0)] = 1.0
    dtype: Literal["bfloat16", "float32"] | None = None
    device: Literal["cpu", "cuda", "mps"] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    microbatch_tokens: Positive | None = None
    evaluate_every: Positive | None = None
    checkpoint_every: Positive | None = None
    keep_last: Positive = 2
    early_stopping: Positive | None = None


class RunConfig(Section):
    """One run. `data` and `validation` are checked by tunesmith.data (sources, splits). `objective`, `adapter`, `optimizer` and each of `evaluate` are {name, and that thing's keyword arguments}."""

    model: Model = Model()
    data: list[dict[str, Any]] = []
    validation: dict[str, Any] | Literal[False] = {}
    objective: dict[str, Any] = {"name": "sft"}
    adapter: dict[str, Any] | None = None
    optimizer: dict[str, Any] = {"name": "adamw"}
    train: Train = Train()
    evaluate: list[dict[str, Any]] = []
    output: str | None = None


SHORT = {
    "model": "path",
    "objective": "name",
    "adapter": "name",
    "optimizer": "name",
}  # `model: x` means `model: {path: x}`


def load_file(path: str) -> dict[str, Any]:
    """Read a run file (safe YAML) as plain data; InputError names the file and the line."""
    file = Path(path)
    if file.is_dir():
        file = file / "run.yaml"
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise InputError(f"there is no run file {path}.{did_you_mean(file.name, siblings)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: this is no YAML ({getattr(e, 'problem', None) or 'not UTF-8 text'}).") from e
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
    except yaml.YAMLError as e:
        raise InputError(f'--set {key}: "{text}" is no YAML value.') from e


def parse(content: Mapping[str, Any], where: str = "the run file") -> RunConfig:
    """Return the checked run; InputError in one sentence for the first thing that is wrong."""
    content = {k: v for k, v in content.items() if v is not None}
    for section, key in SHORT.items():
        if isinstance(content.get(section), str):
            content[section] = {key: content[section]}
    if isinstance(content.get("data"), str | dict):
        content["data"] = [content["data"]]
    for section in ("data", "evaluate"):
        key = "path" if section == "data" else "name"
        if isinstance(content.get(section), list):
            content[section] = [{key: item} if isinstance(item, str) else item for item in content[section]]
    config = _checked(RunConfig, content, where)
    _check_combinations(config, where)
    return config


def _check_combinations(config: RunConfig, where: str) -> None:
    train = config.train
    if train.batch_size and train.tokens_per_step:
        raise InputError(f"{where}: train.batch_size (rows) and train.tokens_per_step exclude each other; keep one.")
    if train.epochs and train.max_steps:
        raise InputError(f"{where}: train.epochs and train.max_steps exclude each other; keep one.")
    if config.validation is False and train.early_stopping:
        raise InputError(f"{where}: train.early_stopping watches the validation loss, but validation is false.")
    if config.adapter is not None and set(config.adapter) != {"from"}:
        if "from" in config.adapter:
            raise InputError(f"{where}: adapter.from continues an adapter as it is; take the other adapter keys away.")
        named(config.adapter, "model.adapters", "attach", "adapter", where)
    named(config.objective, "training.objectives", "loss", "objective", where, skip=("logps", "weights"))
    for i, metric in enumerate(config.evaluate):
        named(metric, "evaluation.metrics", "score", f"evaluate[{i}]", where, skip=("item",))


def named(
    section: Mapping[str, Any],
    package: str,
    function: str | None,
    key: str,
    where: str,
    skip: tuple[str, ...] = ("model",),
) -> dict[str, Any]:
    """Check {name, **arguments} against the named thing's signature; return the checked arguments without the name."""
    if not isinstance(section.get("name"), str):
        raise InputError(f"{where}: {key} needs a name, one of {', '.join(registry.names(package))}.")
    known = registry.names(package)
    if section["name"] not in known:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
        raise InputError(
            f'{where}: {key}.name: there is no {kind} "{section["name"]}".{did_you_mean(section["name"], known)}'
        )
    given = {k: v for k, v in section.items() if k != "name"}
    if function is None:
        return given
    return arguments(getattr(registry.load(package, section["name"]), function), given, f"{where}: {key}", skip)


def arguments(
    function: Callable[..., Any], given: Mapping[str, Any], where: str, skip: tuple[str, ...]
) -> dict[str, Any]:
    """Check keyword arguments against a function's signature (the signature is the schema) and return them converted."""
    fields: dict[str, Any] = {}
    for name, p in inspect.signature(function).parameters.items():
        if name not in skip:
            fields[name] = (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
    schema = create_model("Arguments", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    checked = _checked(schema, given, where)
    return {k: getattr(checked, k) for k in given}


def _checked(schema: type[T], given: Mapping[str, Any], where: str) -> T:
    try:
        return schema.model_validate(dict(given))
    except ValidationError as e:
        raise InputError(_sentence(e, schema, where)) from e


def _sentence(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    errors = sorted(error.errors(), key=lambda x: x["type"] != "extra_forbidden")
    first = errors[0]
    path = [
        p for p in first["loc"] if isinstance(p, int) or p in _all_keys(schema) or first["type"] == "extra_forbidden"
    ]
    key = ".".join(str(p) for p in path)
    if first["type"] == "extra_forbidden":
        siblings = _keys_at(schema, path[:-1])
        return f'{where}: unknown key "{key}".{did_you_mean(str(path[-1]), siblings)}'
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{where}: {key} {message[0].lower() + message[1:]}, found {first['input']!r}."


def _keys_at(schema: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        schema = inner[0]
    return list(schema.model_fields)


def _all_keys(schema: type[BaseModel]) -> set[str]:
    keys = set(schema.model_fields)
    for name in schema.model_fields:
        keys |= set(_keys_at(schema, [name]))
    return keys


def _kind(value: Any) -> str:
    return {"NoneType": "empty", "str": "text", "list": "a list"}.get(type(value).__name__, type(value).__name__)
