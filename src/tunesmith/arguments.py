"""Keyword arguments checked against a schema or a function's signature; what is wrong is said in one sentence with its key."""

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

from tunesmith import registry
from tunesmith.errors import InputError, did_you_mean

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A mapping without unknown keys. Text that is a number passes for one (YAML 1.1 reads 2e-4 as text); true and inf do not."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, given: Any) -> Any:
        for key, value in given.items() if isinstance(given, Mapping) else ():
            field = cls.model_fields.get(key)
            if value is False and field is not None and Literal[False] in get_args(field.annotation):
                continue
            if isinstance(value, bool) and field is not None and _is_number(field.annotation):
                raise ValueError(f"{key} should be a number, found {str(value).lower()}")
        return given


def _is_number(annotation: Any) -> bool:
    arguments = get_args(annotation)
    return annotation in (int, float) or any(_is_number(a) for a in arguments if a is not bool)


def named(
    section: Mapping[str, Any],
    package: str,
    function: str | None,
    key: str,
    where: str,
    skip: tuple[str, ...] = ("model",),
    inferred: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Check {name, **arguments} against the named thing's signature; return the checked arguments without the name."""
    if not isinstance(section.get("name"), str):
        raise InputError(f"{where}: {key} needs a name, one of {', '.join(registry.names(package))}.")
    if section["name"] not in registry.names(package):
        try:
            registry.load(package, section["name"])  # of another library, or what is near
        except InputError as e:
            raise InputError(f"{where}: {key}.name: {e}") from e
    given = {k: v for k, v in section.items() if k != "name"}
    if function is None:
        return given
    return arguments(
        getattr(registry.load(package, section["name"]), function), given, f"{where}: {key}", skip, inferred
    )


def arguments(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    where: str,
    skip: tuple[str, ...],
    inferred: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Check keyword arguments against a function's signature (the signature is the schema) and return them converted.

    `skip` are parameters that are not the user's; `inferred` may be left out although the function needs them.
    """
    fields: dict[str, Any] = {}
    for name, p in inspect.signature(function).parameters.items():
        if name not in skip:
            default = None if name in inferred else ... if p.default is inspect.Parameter.empty else p.default
            fields[name] = (p.annotation, default)
    schema = create_model("Arguments", __base__=Section, **fields)
    found = checked(schema, given, where)
    return {k: getattr(found, k) for k in given}


def checked(schema: type[T], given: Mapping[str, Any], where: str) -> T:
    """Return the schema filled with what was given; InputError for the first thing that is wrong."""
    try:
        return schema.model_validate({str(k): v for k, v in given.items()})
    except ValidationError as e:
        raise InputError(_sentence(e, schema, where)) from e


_SHORT = reprlib.Repr()  # what was found may be a book
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80

EXPECTED = {  # pydantic's error type -> what we say was expected
    "model_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "too_long": "a shorter list",
}


def _sentence(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    """Say the first thing that is wrong; an unknown key before the others, for it explains them."""
    first = min(error.errors(), key=lambda x: x["type"] != "extra_forbidden")
    kind, found = first["type"], first["input"]
    known = _all_keys(schema)
    path = [p for p in first["loc"] if isinstance(p, int) or p in known or kind == "extra_forbidden"]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")
    if kind == "extra_forbidden":
        return f'{where}: unknown key "{key}".{did_you_mean(str(path[-1]), _keys_at(schema, path[:-1]))}'
    if kind == "missing":
        return f"{where}: {key} is missing."
    if kind == "value_error":  # our own sentence, which names its key
        return f"{where}: {key}{'.' * bool(key)}{first['msg'].removeprefix('Value error, ')}."
    expected = EXPECTED.get(kind) or first["msg"].removeprefix("Input should be ")
    hint = ""
    if kind == "literal_error":
        options = re.findall("'([^']*)'", first["msg"])
        expected = f"one of {', '.join(options)}"
        hint = did_you_mean(str(found), options)
        hint = hint if f'mean "{str(found)[:1]}' in hint else ""  # gpu is no misspelt cpu
    return f"{where}: {key} should be {expected}, found {_SHORT.repr(found)}.{hint}"


def _keys_at(schema: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        schema = inner[0]
    return _names(schema)


def _names(schema: type[BaseModel]) -> list[str]:
    """Return the keys of a mapping that fills the schema."""
    return [field.alias or name for name, field in schema.model_fields.items()]


def _all_keys(schema: type[BaseModel]) -> set[str]:
    keys = set(_names(schema))
    for name in schema.model_fields:
        keys |= set(_keys_at(schema, [name]))
    return keys
