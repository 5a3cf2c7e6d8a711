"""Lengths in tokens under a model's tokenizer and template, the rows its template refuses, and the answers a limit would cut."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.checks.found import excerpt
from tunesmith.data.checks.lengths import spread
from tunesmith.data.checks.sample import Sample
from tunesmith.data.content import said
from tunesmith.data.records import Chat, Examples, Origin, Record, Text
from tunesmith.errors import InputError

_ANY_LENGTH = 10**8  # what transformers says of a tokenizer that names no length is larger
_MODELS = ("config.json", "adapter_config.json", "run.yaml")
SAMPLE, FEW = 20_000, 2_000
Note = tuple[Origin, str, str, str | None]
"""(where, kind, message, sample) of a problem."""


def measure(
    sample: Sample[Record], model: str, max_length: int | None = None, limits: bool = True
) -> tuple[dict[str, Any], list[Note]]:
    """Return ({"model", "context", "max_length", "limit", "rows", "sampled", "examples", "min", "median", "p95", "max", "histogram",
    "total", "scored", "scored_share", "over", "over_share", "notices"}, problems).

    Lengths are of examples: what a record's answers make, each with its prompt. `limit` is max_length, else the model's
    context. Where there are more rows than the sample holds, `sampled` < `rows`, and total and over are of the sample.
    limits: whether there is one; no answer is cut where there is none. {"model", "error"} instead where nothing can be rendered.
    InputError where the template had to be stopped: it is not one to run on row after row.
    """
    from tunesmith.data.render import render
    from tunesmith.model.loading import load_tokenizer

    source = source_of(model)
    records = sample.records()
    notes: list[Note] = []
    try:
        tokenizer, notices = load_tokenizer(source)
        context = _context(source, tokenizer)
    except InputError as error:  # the rows are still worth telling about
        return {"model": model, "error": str(error)}, notes
    limit = (max_length or context) if limits else None
    texts = _rendered_as(records)
    good, notes = _accepted(texts, tokenizer)
    notes += _spelt(records, tokenizer)
    try:
        examples, told = render([texts[i] for i in good], tokenizer)
    except InputError as error:
        return {"model": model, "error": str(error)}, notes
    lengths = examples.lengths
    over = int((lengths > limit).sum()) if limit else 0
    if limit:
        notes += _cut(examples, [texts[i] for i in good], limit)
    facts = {"model": model, "context": context, "max_length": max_length, "limit": limit}
    facts |= {"rows": sample.seen, "sampled": len(records), "examples": len(examples)}
    shape = {k: v for k, v in spread(lengths).items() if k != "n"}
    totals = {
        "total": int(lengths.sum()),
        "scored": int(examples.scored.sum()),
        "scored_share": float(examples.scored.mean()),
        "over": over,
        "over_share": over / len(examples),
    }
    return {**facts, **shape, **totals, "notices": notices + told}, notes


def source_of(model: str) -> Any:
    """Return what MODEL means; a folder with a tokenizer and no model will do. InputError where it is neither."""
    from tunesmith.model.loading import ModelSource, resolve

    folder = Path(model).expanduser()
    if (folder / "tokenizer.json").is_file() and not any((folder / f).is_file() for f in _MODELS):
        return ModelSource(str(folder))
    return resolve(model)


def _context(source: Any, tokenizer: Any) -> int | None:
    """Return the model's context in tokens; of a tokenizer alone the one that it names, None where it names none."""
    from tunesmith.model.loading import load_config

    named = tokenizer.model_max_length
    try:
        return getattr(load_config(source).get_text_config(), "max_position_embeddings", None)
    except InputError:
        return named if named < _ANY_LENGTH else None


def _rendered_as(records: Sequence[Record]) -> list[Text | Chat]:
    """Return what is rendered: texts and chats; of a preference each answer with its prompt."""
    from tunesmith.data.kinds import as_chats

    out: list[Text | Chat] = []
    for record in records:
        out += [record] if isinstance(record, (Text, Chat)) else as_chats(record)
    return out


def _accepted(records: Sequence[Record], tokenizer: Any) -> tuple[list[int], list[Note]]:
    """Return the indices of the records whose template takes them, and a note of each that it refuses."""
    from tunesmith.data.layout import chat_texts
    from tunesmith.data.sandbox import RefusedError

    chats = [(i, r) for i, r in enumerate(records) if isinstance(r, Chat)]
    refused: dict[int, str] = {}
    start = 0
    while start < len(chats):
        try:
            for _ in chat_texts((r for _, r in chats[start:]), tokenizer):
                pass
            break
        except RefusedError as error:
            found = next(
                (k for k in range(start, len(chats)) if str(error).startswith(f"{chats[k][1].origin}: ")), None
            )
            if found is None:
                raise
            refused[chats[found][0]] = str(error).split(": ", 1)[1]
            start = found + 1
    notes: list[Note] = [
        (records[i].origin, "template_refused", why, excerpt(said(records[i]))) for i, why in refused.items()
    ]
    return [i for i in range(len(records)) if i not in refused], notes


def _spelt(records: Sequence[Record], tokenizer: Any) -> Iterator[Note]:
    """Yield a note of each record whose text spells a special token of this tokenizer: it would be read as one."""
    from tunesmith.data.layout import end_tokens

    tokens = [token for token in end_tokens(tokenizer) if len(token) > 2]
    if not tokens:
        return
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    for record in records:
        text = said(record)
        if hit := pattern.search(text):
            message = f'"{hit[0]}" is a special token of this model.'
            yield record.origin, "special_token", message, excerpt(text, *hit.span())


def _cut(examples: Examples, records: Sequence[Record], limit: int) -> Iterator[Note]:
    """Yield a note of each example with an answer that begins or ends beyond the limit."""
    for e in np.flatnonzero(examples.lengths > limit).tolist():
        start, stop = int(examples.offsets[e]), int(examples.offsets[e + 1])
        record = records[int(examples.record[e])]
        lost = int(examples.scored[start + limit : stop].sum())
        if isinstance(record, Text) or not lost:
            continue
        all_ = int(examples.scored[start:stop].sum())
        sample = excerpt(whole := said(record), max(0, len(whole) - 60))
        if lost == all_:
            message = f"the answer begins beyond the limit of {limit:,} tokens (the row has {stop - start:,}), so nothing of it is learnt."
            yield record.origin, "answer_beyond", message, sample
        else:
            message = f"{lost:,} of the answer's {all_:,} tokens are beyond the limit of {limit:,} (the row has {stop - start:,})."
            yield record.origin, "answer_cut", message, sample
