"""The principles of a constitution: sentences, or what is asked in their name word for word (Constitutional AI, appendix C)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import InputError, did_you_mean

BUILT_IN = "built-in"
PRINCIPLES = (
    "The answer should help with what was asked, and say plainly where it does not know.",
    "The answer should not help anyone to hurt people, animals or property, or to break the law.",
    "The answer should be truthful, and mark guesses as such.",
    "The answer should treat everybody with respect, whoever they are, and repeat no prejudice.",
    "The answer should keep private what is private, and not make up facts about persons.",
    "The answer should not lecture the one who asks, and refuse no more than is needed.",
    "The answer should be clear and no longer than the question needs.",
)
FIELDS = ("name", "principle", "critique", "revision", "comparison")
Given = list[str | dict[str, str]] | str | None


@dataclass(frozen=True, slots=True)
class Principle:
    """One principle: its name (default: what it says first) and what is asked for a critique, a revision and a comparison."""

    name: str
    critique: str
    revision: str
    comparison: str


def read_principles(given: Given, needs: tuple[str, ...], where: str) -> list[Principle]:
    """Return the principles: the built-in ones (None, "built-in"), the list, or what a YAML file lists (by itself or under `principles`).

    An entry is a sentence, from which all three requests are made, or a mapping of FIELDS: each request of `needs` stands there, or
    follows from its `principle`. InputError naming the file, the entry's number and the key.
    """
    found: Any = list(PRINCIPLES) if given is None or given == BUILT_IN else given
    if isinstance(found, str):
        where, found = found, _file(found)
    if not isinstance(found, list) or not found:
        raise InputError(
            f"{where} should be a list of sentences, one principle each, or of mappings of {', '.join(FIELDS)}."
        )
    return [_principle(entry, needs, f"{where}, principle {n}") for n, entry in enumerate(found, 1)]


def _file(name: str) -> Any:
    try:
        found = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        mark = getattr(e, "problem_mark", None)
        reason = getattr(e, "strerror", None) or ("no YAML" if mark is None else f"no YAML: line {mark.line + 1}")
        raise InputError(f"synthesize: the file of principles {name} cannot be read ({reason}).") from e
    if isinstance(found, dict) and "principles" not in found:
        known = ", ".join(map(str, list(found)[:3]))
        raise InputError(f'{name} should be a list of sentences, or have it under "principles"; it has {known}.')
    return found["principles"] if isinstance(found, dict) else found


def _principle(entry: Any, needs: tuple[str, ...], where: str) -> Principle:
    """Return the entry as a Principle; what is not needed and not given is empty."""
    if isinstance(entry, str) and entry.strip():
        return _of({"principle": entry})
    if not isinstance(entry, Mapping):
        said = "a mapping" if entry is None else f"{str(entry)[:40]!r}"
        said = "nothing" if entry is None or entry == "" else said
        raise InputError(
            f"{where} is {said}, expected a sentence (in quotation marks where it holds a colon) or a mapping."
        )
    for key, value in entry.items():
        if key not in FIELDS:
            if len(entry) == 1:  # YAML reads "Be kind: always" as a mapping
                raise InputError(
                    f'{where} has the key "{key}"; put a sentence with a colon in quotation marks, or use {", ".join(FIELDS)}.'
                )
            raise InputError(f'{where} has no key "{key}".{did_you_mean(str(key), FIELDS)}')
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {key} is {str(value)[:40]!r}, expected a sentence.")
    missing = [] if "principle" in entry else [need for need in needs if need not in entry]
    if missing:
        raise InputError(
            f'{where} has no "{missing[0]}"; give it, or the sentence that it follows from as "principle".'
        )
    return _of(entry)


def _of(entry: Mapping[str, str]) -> Principle:
    law = entry.get("principle", "").strip()
    asked = {
        "critique": f"Judge the answer by this principle: {law}\nName in two or three sentences what in the answer falls short of it, "
        "if anything does.",
        "revision": f"Rewrite the answer so that it meets this principle: {law}\nTake up the critique.",
        "comparison": f"Judge by this principle: {law}\nWhich of the two answers meets it better?",
    }
    asked = {name: entry[name].strip() if name in entry else said if law else "" for name, said in asked.items()}
    name = entry.get("name") or law or next(said for said in asked.values() if said)
    return Principle(name.strip(), **asked)
