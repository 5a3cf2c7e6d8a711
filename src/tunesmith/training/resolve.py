"""The resolved run file: what was asked, what was inferred and why, as YAML with a comment of reason; and what resuming may not change."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tunesmith.config import RunConfig, parse
from tunesmith.errors import InputError
from tunesmith.training.infer import Inferred


def apply(config: RunConfig, found: Sequence[Inferred]) -> RunConfig:
    """Return the run with the inferred values filled in (checked like the user's own)."""
    content = as_dict(config)
    for item in found:
        node = content
        *parents, last = item.key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = item.value
    return parse(content)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """Return the run as plain data, what is unset left out."""
    content: dict[str, Any] = config.model_dump(exclude_none=True)
    return content


def to_yaml(config: RunConfig, found: Sequence[Inferred]) -> str:
    """Return the resolved run file, each inferred value with its reason as a comment."""
    reasons = {item.key: item.reason for item in found}
    lines: list[str] = []
    path: list[str] = []
    for line in yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True, width=10_000).splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        stripped = line.lstrip(" -")
        if ":" in stripped and not line.lstrip().startswith("-"):
            path = [*path[:depth], stripped.split(":", 1)[0]]
            reason = reasons.get(".".join(path))
            if reason:
                line = f"{line}  # {reason}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def refuse_changes(given: RunConfig, stored: RunConfig, folder: str) -> None:
    """InputError naming the first key the user gave that differs from the run to be resumed (output aside)."""
    asked = given.model_dump(exclude_unset=True, exclude={"output"})
    difference = _difference(asked, stored.model_dump(), "")
    if difference:
        key, new, old = difference
        raise InputError(
            f"{folder} was begun with {key} = {old!r}, now it is {new!r}; resume without the change, or choose a new --output."
        )


def _difference(new: Any, old: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        for name, value in new.items():
            inner = f"{key}.{name}" if key else str(name)
            found = _difference(value, old.get(name), inner)
            if found:
                return found
        return None
    return None if new == old else (key, new, old)
