"""The run file as plain data: read from safe YAML, and changed by `--set`."""

from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import InputError, did_you_mean

SHORT = {
    "model": "path",
    "objective": "name",
    "adapter": "name",
    "optimizer": "name",
    "regularizer": "name",
    "validation": "path",
}  # `model: x` means `model: {path: x}`


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is a mistake, not the second one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"  # YAML 1.1 reads `on`, a key of adapter, as true
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
        node[last] = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InputError(f'--set {key}: "{text[:80]}" is no YAML value.') from e


def _kind(value: Any) -> str:
    return {"NoneType": "empty", "str": "text", "list": "a list"}.get(type(value).__name__, type(value).__name__)
