"""augment: more rows by saying prompts otherwise, without a model; the answers stay as they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.data.augment._words import asked_part, words
from tunesmith.data.content import answer_texts, prompt_turns, texts
from tunesmith.data.records import Chat, Message, Record, Text
from tunesmith.data.rows import Rows

ORDER = 90
DEFAULT = False
PACKAGE = "data.augment"
_TRIES = 3
Method = str | dict[str, Any]


def apply(
    rows: Rows,
    *,
    methods: Annotated[list[Method], Field(min_length=1)] = ["synonyms", "instruction"],  # noqa: B006 (never changed)
    share: Annotated[float, Field(gt=0, le=1)] = 0.5,
    copies: Annotated[int, Field(ge=1, le=20)] = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Add `copies` variations of a share of the rows, each by one of the methods drawn by seed; return facts for the card.

    methods: names of data/augment, or {name, its options}. Only the last turn of the user before the answer is varied; words
    that the answer takes up stay. A variation equal to a row there is, or to another one, is not added. Each says where it
    comes from in its "provenance" field.
    """
    made, tried = dict.fromkeys((m["name"] for m in _listed(methods)), 0), 0
    ways = [(m["name"], *_way(m)) for m in _listed(methods)]
    seen = {_prompt_hash(record) for _, record in rows}
    chosen = [id_ for id_, record in rows if not isinstance(record, Text)]
    rng = np.random.default_rng([seed, 90])
    chosen = sorted(rng.permutation(chosen)[: round(share * len(chosen))].tolist())
    for id_ in chosen:
        for copy in range(copies):
            tried += 1
            for attempt in range(_TRIES):
                own = np.random.default_rng([seed, id_, copy, attempt])
                name, whole, vary = ways[int(own.integers(len(ways)))]
                record = varied(rows[id_], vary, whole, own)
                if record is not None and (key := _prompt_hash(record)) not in seen:
                    seen.add(key)
                    made[name] += 1
                    rows.add(
                        _signed(record, name), f"a variation of {record.origin} by {name}", from_=[id_], method=name
                    )
                    break
    total = sum(made.values())
    return {
        "summary": f"{total:,} variations of {len(chosen):,} rows added; {tried - total:,} came out as a row there is",
        "numbers": {f"made by {name}": count for name, count in made.items()},
    }


def check(*, methods: list[Method], **_: Any) -> None:
    """InputError for a method there is none of, or an option it does not have."""
    for method in _listed(methods):
        _way(method)


def varied(record: Record, vary: Callable[..., str], whole: bool, rng: np.random.Generator) -> Record | None:
    """Return the record with its last asked turn varied, None where it has none or nothing changed."""
    if isinstance(record, Text):
        return None
    messages = record.messages if isinstance(record, Chat) else record.prompt
    before = len(prompt_turns(record))
    place = next((i for i in range(before - 1, -1, -1) if messages[i]["role"] == "user"), None)
    if place is None:
        return None
    asked = messages[place]["content"]
    if not isinstance(asked, str):  # parts, with images among them
        return None
    end = len(asked) if whole else asked_part(asked)
    keep = frozenset().union(*(words(text) for text in answer_texts(record)))
    said = vary(asked[:end], rng, keep) + asked[end:]
    if said == asked or not said.strip():
        return None
    turns: list[Message] = [*messages[:place], {**messages[place], "content": said}, *messages[place + 1 :]]
    return replace(record, messages=turns) if isinstance(record, Chat) else replace(record, prompt=turns)


def _listed(methods: list[Method]) -> list[dict[str, Any]]:
    return [{"name": method} if isinstance(method, str) else method for method in methods]


def _way(method: dict[str, Any]) -> tuple[bool, Callable[..., str]]:
    options = named(method, PACKAGE, "vary", "augment.methods", "prepare", skip=("text", "rng", "keep"))
    module: Any = registry.load(PACKAGE, method["name"])
    for option in ("templates", "lexicon"):
        if options.get(option) is not None:
            module.vary("a", np.random.default_rng(0), **options)  # a wrong file or template is said now
    return module.WHOLE, partial(module.vary, **options)


def _signed(record: Record, method: str) -> Record:
    return replace(record, extra={**record.extra, "provenance": {"method": method, "from": str(record.origin)}})


def _prompt_hash(record: Record) -> int:
    return hash(tuple(texts(record)))
