"""Answers scored by a stated rule: check("It is in the hall.", {"rule": "contains", "texts": ["hall"]}) is 1.0.

A row of data may carry such a rule under "check": the name of a rule (the functions listed in RULES) and its arguments. All return
a score from 0 to 1, never an error, for whatever the answer says; a rule that is itself wrong is the user's mistake (InputError).
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.errors import InputError, did_you_mean


def check(answer: str, rule: Mapping[str, Any]) -> float:
    """Return the answer's score (0 to 1) under the rule; InputError where the rule has no such name or arguments."""
    function, arguments = check_rule(rule)
    return float(function(answer, **arguments))


def check_rule(rule: Mapping[str, Any]) -> tuple[Callable[..., float], dict[str, Any]]:
    """Return the function a rule names and its arguments, proven to fit; InputError in one sentence otherwise."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("rule"), str):
        raise InputError(f'a check is an object such as {{"rule": "exact", "answers": ["yes"]}}, not {rule!r}.')
    name, arguments = rule["rule"], {k: v for k, v in rule.items() if k != "rule"}
    if name not in RULES:
        raise InputError(f'there is no rule named "{name}".{did_you_mean(name, RULES)}')
    parameters = list(inspect.signature(RULES[name]).parameters.values())[1:]
    known = {p.name for p in parameters}
    for key in arguments:
        if key not in known:
            raise InputError(f'the rule "{name}" has no argument "{key}".{did_you_mean(key, known)}')
    for p in parameters:
        if p.default is p.empty and p.name not in arguments:
            raise InputError(f'the rule "{name}" needs the argument "{p.name}", which is not given.')
    for p in parameters:
        if p.name in arguments and not _fits(arguments[p.name], p.annotation):
            raise InputError(
                f'the rule "{name}" needs {_WANTED[p.annotation]} as "{p.name}", not {arguments[p.name]!r}.'
            )
    return RULES[name], arguments


def exact(answer: str, *, answers: list[str]) -> float:
    """1 if the answer equals one of `answers`; only white space is normalised (ends stripped, runs made one space)."""
    return float(_spaces(answer) in {_spaces(a) for a in answers})


def same_words(answer: str, *, answers: list[str]) -> float:
    """1 if the answer has the words of one of `answers` in order; case, punctuation and white space do not count."""
    return float(_words(answer) in [_words(a) for a in answers])


def contains(answer: str, *, texts: list[str]) -> float:
    """The share of `texts` that occur in the answer as whole words (1 of none); case and punctuation do not count."""
    words = " ".join(["", *_words(answer), ""])
    found = [" ".join(["", *_words(t), ""]) in words for t in texts]
    return sum(found) / len(found) if found else 1.0


def excludes(answer: str, *, texts: list[str]) -> float:
    """1 if none of `texts` occurs in the answer as whole words; case and punctuation do not count."""
    return float(not texts or all(contains(answer, texts=[t]) == 0 for t in texts))


def ends_with(answer: str, *, texts: list[str]) -> float:
    """1 if the answer ends with one of `texts`, closing marks included; white space after it does not count."""
    return float(answer.rstrip().endswith(tuple(texts)))


def number(answer: str, *, value: float) -> float:
    """1 if the last number in the answer equals `value` (to 1e-9 of its size); thousands may have commas."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", answer)
    return float(bool(found) and abs(float(found[-1].replace(",", "")) - value) <= 1e-9 * max(1.0, abs(value)))


def json_equal(answer: str, *, value: Any) -> float:
    """1 if the whole answer is JSON equal to `value`: order of keys and white space do not count, 1 equals 1.0, not true."""
    try:
        return float(_same(json.loads(answer), value))
    except (ValueError, RecursionError):
        return 0.0


def tool_call(answer: str, *, name: str, arguments: dict[str, Any]) -> float:
    """1 if the answer is one call of the tool `name` with equal arguments (as in json_equal) and nothing else.

    Read are {"name": ..., "arguments": {...}}, bare or between <tool_call> tags; arguments may be a string of JSON.
    """
    body = re.sub(r"^\s*<tool_call>(.*)</tool_call>\s*$", r"\1", answer, flags=re.DOTALL)
    try:
        call = json.loads(body)
        given = call.get("arguments")
        given = json.loads(given) if isinstance(given, str) else given
        return float(call.get("name") == name and _same(given, arguments))
    except (ValueError, RecursionError, AttributeError):
        return 0.0


def n_words(answer: str, *, n: int) -> float:
    """1 if the answer has exactly n words (runs of letters, digits, hyphens and apostrophes)."""
    return float(len(_words(answer)) == n)


def max_words(answer: str, *, n: int) -> float:
    """1 if the answer has at least one and at most n words."""
    return float(1 <= len(_words(answer)) <= n)


def items(answer: str, *, n: int, of: list[str] | None = None, separator: str = ",") -> float:
    """1 if the answer is n different items between separators, each one of `of` if given.

    Case and a closing full stop do not count. The separator "\\n" means lines, whose bullets or numbers ("- ", "2. ") do not count.
    """
    text = answer.strip().removesuffix(".")
    parts = [p.strip().lower() for p in text.split(separator)]
    if separator == "\n":
        parts = [re.sub(r"^(?:[-*•]|\d+[.)])\s+", "", p) for p in parts]
    allowed = None if of is None else {o.lower() for o in of}
    good = len(parts) == n == len(set(parts)) and all(parts)
    return float(good and (allowed is None or set(parts) <= allowed))


def all_of(answer: str, *, rules: list[dict[str, Any]]) -> float:
    """The lowest score of the rules: 1 if every one holds."""
    return min((check(answer, r) for r in rules), default=1.0)


RULES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        exact, same_words, contains, excludes, ends_with, number, json_equal, tool_call, n_words, max_words, items, all_of,
    )
}  # fmt: skip

_WANTED: dict[Any, str] = {
    list[str]: "a list of texts",
    list[str] | None: "a list of texts",
    list[dict[str, Any]]: "a list of rules",
    dict[str, Any]: "an object",
    str: "a text",
    int: "a whole number",
    float: "a number",
}


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind == list[str] or kind == list[str] | None:
        return value is None if not isinstance(value, list) and kind != list[str] else _texts(value)
    if kind == list[dict[str, Any]]:
        return isinstance(value, list) and all(bool(check_rule(v)) for v in value)
    if kind == dict[str, Any]:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _spaces(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
