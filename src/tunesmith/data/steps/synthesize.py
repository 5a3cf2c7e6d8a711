"""synthesize: rows written by a model behind an OpenAI-compatible address, or by a local one; estimated first, kept as they come."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tunesmith import registry
from tunesmith.arguments import Section, checked, named
from tunesmith.data.content import said, texts
from tunesmith.data.records import Record, Text
from tunesmith.data.rows import Rows
from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._novel import Known
from tunesmith.data.synthesis._reply import spoken
from tunesmith.data.synthesis._rounds import Answer, Made, NoAnswer, Request, Sampling, Seed, drive
from tunesmith.data.synthesis._turns import question
from tunesmith.errors import InputError

ORDER = 95
DEFAULT = False
WRITES = ("journal",)  # options that name files this step writes: what is in them is no part of the recipe
PACKAGE = "data.synthesis"
_BYTES = 4  # of a token, about, in an estimate: letters of other scripts have more bytes, and more tokens
Method = str | dict[str, Any]


class Price(Section):
    """What a million tokens cost, asked and answered, in any currency."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


def apply(
    rows: Rows,
    *,
    method: Method,
    model: str,
    endpoint: str | None = None,
    key_env: str | None = None,
    rows_used: Annotated[int, Field(ge=1)] | None = None,
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 512,
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7,
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8,
    timeout: Annotated[float, Field(gt=0, le=3600)] = 120,
    price: dict[str, float] | None = None,
    budget: Annotated[float, Field(ge=0)] | None = None,
    estimate: bool = False,
    similar: Annotated[float, Field(gt=0, le=1)] = 0.9,
    journal: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Add the rows a method (a name of data/synthesis, or {name, its options}) makes from `rows_used` rows drawn by seed (default: all).

    Said first: how many requests and tokens, and the cost at `price` ({input, output} per million tokens); beyond `budget` nothing is
    asked, with `estimate` neither. Answers are written to `journal` (default: in the cache folder) as they come: what was interrupted
    goes on, and the same recipe makes the same rows. A row whose prompt has ROUGE-L of `similar` or more with one there is, is left
    out. Each row says in its "provenance" field how it was made.
    """
    name, options = _method(method)
    way: Any = registry.load(PACKAGE, name)
    seeds = _seeds(rows, rows_used, seed)
    facts = _estimate(way, seeds, options, max_tokens, price)
    print(f"synthesize: {facts['summary']}", file=sys.stderr)
    if budget is not None and facts["numbers"].get("estimated cost", 0.0) > budget:
        raise InputError(
            f"synthesize: {facts['summary']}, beyond the budget of {budget:g}; use fewer rows, or raise synthesize.budget."
        )
    if estimate or not seeds:
        return facts
    writer = _writer(model, endpoint, key_env, concurrency, timeout)
    kept = Journal(_place(journal, writer.name, name), writer.name)
    try:
        made, refused = drive(
            way.make(seeds, Sampling(max_tokens, temperature, seed), **options), _answerer(writer, kept)
        )
    finally:
        kept.close()
    used = writer.tokens
    print(f"synthesize: {used['asked']:,} tokens asked and {used['answered']:,} answered now", file=sys.stderr)
    added = _add(rows, made, refused, name, writer.name, similar)
    return {
        "summary": f"{added:,} rows made by {name} with {writer.name}; {sum(refused.values()):,} attempts came to nothing",
        "numbers": facts["numbers"],
        "tables": [
            {
                "title": "attempts that came to nothing",
                "columns": ["why", "count"],
                "rows": [list(r) for r in refused.most_common()],
            }
        ],
    }


def check(
    *,
    method: Method,
    model: str,
    endpoint: str | None = None,
    key_env: str | None = None,
    price: dict[str, float] | None = None,
    budget: float | None = None,
    concurrency: int = 8,
    timeout: float = 120,
    **_: Any,
) -> None:
    """InputError for a method, option, model, address, key or price that is wrong; nothing is asked yet."""
    name, options = _method(method)
    way: Any = registry.load(PACKAGE, name)
    if hasattr(way, "check"):
        way.check(**options)
    if price is not None:
        checked(Price, price, "prepare: synthesize.price")
    elif budget is not None:
        raise InputError(
            "prepare: synthesize.budget needs synthesize.price: {input: ..., output: ...} per million tokens."
        )
    _writer(model, endpoint, key_env, concurrency, timeout)


def _method(method: Method) -> tuple[str, dict[str, Any]]:
    given = {"name": method} if isinstance(method, str) else method
    return str(given.get("name")), named(
        given, PACKAGE, "make", "synthesize.method", "prepare", skip=("seeds", "sampling")
    )


def _writer(model: str, endpoint: str | None, key_env: str | None, concurrency: int, timeout: float) -> Any:
    if endpoint is not None:
        from tunesmith.data.synthesis._endpoint import Endpoint

        return Endpoint(endpoint, model, key_env, concurrency, timeout)
    if key_env is not None:
        raise InputError("prepare: synthesize.key_env is for an endpoint; a local model needs no key.")
    from tunesmith.data.synthesis._local import Local

    return Local(model)


class _Seeds(Sequence[Seed]):
    """Rows by their ids, read when they are looked at."""

    def __init__(self, rows: Rows, ids: npt.NDArray[np.int64]) -> None:
        self.rows, self.ids = rows, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Seeds(self.rows, self.ids[index])
        id_ = int(self.ids[index])
        return Seed(id_, self.rows[id_])


def _seeds(rows: Rows, count: int | None, seed: int) -> Sequence[Seed]:
    ids = np.flatnonzero(rows.alive)
    if count is not None:
        ids = np.sort(np.random.default_rng([seed, 95]).permutation(ids)[:count])
    return _Seeds(rows, ids)


def _estimate(
    way: Any, seeds: Sequence[Seed], options: dict[str, Any], max_tokens: int, price: dict[str, float] | None
) -> dict[str, Any]:
    """Return about how many requests and tokens there will be at most, and the cost; the first round is looked at, not asked.

    What earlier answers add to later requests counts with max_tokens each.
    """
    rounds = way.make(seeds, Sampling(max_tokens), **options)
    first: list[Request] = next(rounds, [])
    rounds.close()
    calls = way.calls(seeds, **options)
    answered = calls * max_tokens
    size = sum(len(text.encode()) for request in first for _, text in request.messages) / max(len(first), 1) / _BYTES
    asked = round(calls * size) + way.quoted(seeds, **options) * max_tokens
    numbers: dict[str, float] = {
        "estimated requests": calls,
        "estimated tokens asked": asked,
        "most tokens answered": answered,
    }
    summary = f"about {calls:,} requests with {asked:,} tokens, and at most {answered:,} tokens of answers"
    if price is not None:
        numbers["estimated cost"] = (asked * price["input"] + answered * price["output"]) / 1e6
        summary += f": at most about {numbers['estimated cost']:.2f}"
    return {"summary": summary, "numbers": numbers}


def _answerer(writer: Any, journal: Journal) -> Any:
    def answer(requests: Sequence[Request]) -> list[Answer]:
        missing = {request: None for request in requests if journal.get(request) is None}
        writer.answer(list(missing), journal)
        found = [journal.get(request) for request in requests]
        return [NoAnswer("no answer") if one is None else spoken(one) for one in found]

    return answer


def _place(journal: str | None, writer: str, method: str) -> Path:
    if journal is not None:
        return Path(journal).expanduser()
    from tunesmith.data.cache import folder_of_cache

    return folder_of_cache().parent / "synthesis" / f"{method}-{hashlib.sha256(writer.encode()).hexdigest()[:12]}.jsonl"


def _add(rows: Rows, made: Sequence[Made], refused: Counter[str], method: str, model: str, similar: float) -> int:
    """Add the rows that are new, by their prompts (texts: by what they say); return how many."""
    known, whole = Known(similar), {_hash(record) for _, record in rows}
    new = registry.load(PACKAGE, method).NEW_PROMPTS
    for _, record in rows if new else ():
        known.add(_asked(record))
    added = 0
    for one in made:
        if _hash(one.record) in whole or (new and known.nearest(_asked(one.record))):
            refused["a row like one there is"] += 1
            continue
        whole.add(_hash(one.record))
        if new:
            known.add(_asked(one.record))
        sources = [str(rows[id_].origin) for id_ in one.of]
        provenance = {
            "method": method,
            "model": model,
            "from": sources[0] if len(sources) == 1 else sources,
            **one.facts,
        }
        record = replace(one.record, extra={**one.record.extra, "provenance": provenance})
        # Rows stay on one side of a split with what they were made from; the many that were only shown would tie all together.
        parents = {"from_": list(one.of)} if len(one.of) == 1 else {"shown": list(one.of)}
        rows.add(record, f"made by {method} with {model}", method=method, **parents)
        added += 1
    return added


def _hash(record: Record) -> bytes:
    return hashlib.sha256(json.dumps(list(texts(record))).encode()).digest()[:16]


def _asked(record: Record) -> str:
    return record.text if isinstance(record, Text) else question(record) or said(record)
