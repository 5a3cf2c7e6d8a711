"""synthesize: rows written by a model behind an OpenAI-compatible address, or by a local one; estimated first, kept as they come."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tunesmith import registry
from tunesmith.arguments import checked, named
from tunesmith.data.content import said, texts
from tunesmith.data.records import Record, Text
from tunesmith.data.rows import Rows
from tunesmith.data.synthesis._crew import Crew, Judge, Price, Reach, judge_of, model_of
from tunesmith.data.synthesis._estimate import Prices
from tunesmith.data.synthesis._estimate import estimate as estimates
from tunesmith.data.synthesis._judge import Tally
from tunesmith.data.synthesis._novel import Known
from tunesmith.data.synthesis._rounds import Made, Sampling, Seed, drive
from tunesmith.data.synthesis._turns import question
from tunesmith.errors import InputError

ORDER = 95
DEFAULT = False
WRITES = ("journal",)  # options that name files this step writes: what is in them is no part of the recipe
PACKAGE = "data.synthesis"
Method = str | dict[str, Any]


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
    judge: dict[str, Any] | None = None,
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
    out. Each row says in its "provenance" field how it was made. `judge` {model, endpoint, key_env, price}: who judges, for a method
    that asks one (default: the model itself); its answers' journal stands beside the other.
    """
    name, options = _method(method)
    way: Any = registry.load(PACKAGE, name)
    judging = hasattr(way, "judged")
    jury, seeds = judge_of(judge, judging, name), _seeds(rows, rows_used, seed)
    sampling, tally = Sampling(max_tokens, temperature, seed), Tally()
    given = (seeds, sampling, tally) if judging else (seeds, sampling)
    prices = Prices(price, price if jury is None else jury.prices)
    facts = estimates(way, way.make(*given, **options), seeds, options, max_tokens, prices)
    _tell(facts, budget)
    if estimate or not seeds:
        return facts
    with closing(Crew(*_models(model, endpoint, key_env, jury, Reach(concurrency, timeout)), journal, name)) as crew:
        made, refused = drive(way.make(*given, **options), crew.answer)
    used = crew.tokens
    print(f"synthesize: {used['asked']:,} tokens asked and {used['answered']:,} answered now", file=sys.stderr)
    signature = {"method": name, **crew.names(judging)}
    added = _add(rows, made, refused, signature, similar)
    for one in seeds if judging else ():
        if way.replaces(one.record, **options):
            rows.drop(one.id, "its answers were judged anew")
    return _facts(facts["numbers"], added, refused, signature, tally)


def _tell(facts: dict[str, Any], budget: float | None) -> None:
    """Tell what it may cost; InputError where that is beyond the budget."""
    print(f"synthesize: {facts['summary']}", file=sys.stderr)
    if budget is not None and facts["numbers"].get("estimated cost", 0.0) > budget:
        raise InputError(
            f"synthesize: {facts['summary']}, beyond the budget of {budget:g}; use fewer rows, or raise synthesize.budget."
        )


def _facts(
    numbers: dict[str, float], added: int, refused: Counter[str], signature: dict[str, str], tally: Tally
) -> dict[str, Any]:
    """Return what the card tells: the rows, the attempts that came to nothing, and how the judge judged, where there is one."""
    summary = f"{added:,} rows made by {signature['method']} with {signature['model']}"
    why = {"title": "attempts that came to nothing", "columns": ["why", "count"]}
    tables = [why | {"rows": [list(r) for r in refused.most_common()]}]
    if "judge" in signature:
        judged = f"judged by {signature['judge']}: {tally.summary()}"
        print(f"synthesize: {judged}", file=sys.stderr)
        summary, numbers = f"{summary}, {judged}", numbers | tally.numbers()
        title = "pairs asked about in both orders"
        tables.insert(0, {"title": title, "columns": ["the judge preferred", "pairs"], "rows": tally.table()})
    nothing = f"{sum(refused.values()):,} attempts came to nothing"
    nothing += f", most often: {refused.most_common(1)[0][0]}" if refused else ""
    return {
        "summary": f"{summary}; {nothing}",
        "numbers": numbers,
        "tables": tables,
    }


def check(
    *,
    method: Method,
    model: str,
    endpoint: str | None = None,
    key_env: str | None = None,
    judge: dict[str, Any] | None = None,
    temperature: float = 0.7,
    price: dict[str, float] | None = None,
    budget: float | None = None,
    concurrency: int = 8,
    timeout: float = 120,
    **_: Any,
) -> None:
    """InputError for a method, option, model, judge, address, key or price that is wrong; nothing is asked yet."""
    name, options = _method(method)
    way: Any = registry.load(PACKAGE, name)
    if hasattr(way, "check"):
        way.check(temperature=temperature, **options)
    jury = judge_of(judge, hasattr(way, "judged"), name)
    if price is not None:
        checked(Price, price, "prepare: synthesize.price")
    elif budget is not None:
        raise InputError(
            "prepare: synthesize.budget needs synthesize.price: {input: ..., output: ...} per million tokens."
        )
    if budget is not None and jury is not None and jury.endpoint is not None and jury.price is None:
        raise InputError(
            "prepare: synthesize.budget needs synthesize.judge.price: {input: ..., output: ...} per million tokens."
        )
    _models(model, endpoint, key_env, jury, Reach(concurrency, timeout))


def _method(method: Method) -> tuple[str, dict[str, Any]]:
    given = {"name": method} if isinstance(method, str) else method
    return str(given.get("name")), named(
        given, PACKAGE, "make", "synthesize.method", "prepare", skip=("seeds", "sampling", "tally")
    )


def _models(
    model: str, endpoint: str | None, key_env: str | None, jury: Judge | None, reach: Reach
) -> tuple[Any, Any | None]:
    """Return the model that writes, and the judge where it is another."""
    writer = model_of(model, endpoint, key_env, reach)
    if jury is None or (jury.model, jury.endpoint) == (model, endpoint):
        return writer, None
    return writer, model_of(jury.model, jury.endpoint, jury.key_env, reach, "synthesize.judge")


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


def _add(rows: Rows, made: Sequence[Made], refused: Counter[str], signature: dict[str, str], similar: float) -> int:
    """Add the rows that are new, by their prompts (texts: by what they say); return how many."""
    method, model = signature["method"], signature["model"]
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
            **signature,
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
