"""The verb `score`: a reward model's scores of every answer of a data set, and what they say of the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunesmith.data import kinds
from tunesmith.data.records import KINDS, Chat, Preference, Record
from tunesmith.errors import InputError
from tunesmith.evaluation.items import content_text
from tunesmith.rewarding import output as files
from tunesmith.rewarding import rewards
from tunesmith.rewarding.candidates import Told
from tunesmith.rewarding.score_metrics import Scored, measure


def score(
    reward: str,
    *,
    data: Any,
    output: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    told: Told = lambda said: None,
) -> dict[str, Any]:
    """Score the answers of `data` (a path, hub id or mapping as in a run file's `data`, or a list of them) with a reward model.

    Of a preference every answer is scored, of a verdict its answer, of a chat the last answer that is trained, of a prompt its
    reference; rows without one are left out. `limit` takes the first rows.

    Returns {"rows", "answers": how many were scored, "metrics": score_metrics.measure, "output", "notices"}. With `output` the rows
    that were scored are written as JSON lines, each with "scored": {"reward", "from", "scores"}, and "heads" where the model has
    several: {name: scores}. InputError for anything wrong, before weights load.
    """
    from tunesmith.data.sources import load

    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1.")
    if output is not None:
        files.check(output)
    if isinstance(rewards.named(reward), rewards.Metric):
        raise InputError(f"{reward} is a metric, not a reward model; `tunesmith evaluate` measures a model by it.")
    loaded = load(data)
    judge = rewards.find(reward, device)
    assert isinstance(judge, rewards.RewardModel)
    if output is not None and len(loaded.kinds) > 1:
        raise InputError(
            f"a file holds rows of one kind, and the data has {' and '.join(sorted(loaded.kinds))} rows; score each set by itself, or "
            "leave --output out."
        )
    notices = list(loaded.notices)
    records = list(loaded.records[:limit])
    answers = [_answers(record) for record in records]
    if not any(answers):
        raise InputError(f"{', '.join(s.path for s in loaded.sources)} holds no answer to score; {_wanted(records)}.")
    chats = [chat for own in answers for chat in own]
    told(f"scoring {len(chats):,} answers with {reward}")
    parts, combined, heads = judge.score_heads(chats)
    lengths, ends = _lengths(chats, judge.tokenizer), np.cumsum([len(own) for own in answers])[:-1]
    rows = [Scored(*of) for of in zip(records, *(np.split(x, ends) for x in (combined, lengths, parts)), strict=True)]
    answered = _left_out(rows, [row for row in rows if len(row.scores)], "hold no answer", notices)
    whole = _left_out(answered, [row for row in answered if _whole(row)], "have an empty answer", notices)
    rows = [row for row in whole if not np.isnan(row.scores).any()]
    _left_out(whole, rows, "have an answer beyond the reward model's context", notices)
    if not rows:
        raise InputError(f"no row can be scored: {notices[-1]}; take a reward model with a longer context.")
    metrics, alarm = measure(rows, heads, seed)
    notices += [alarm] if alarm else []
    if output is not None:
        files.write(output, [_with_scores(row, reward, heads) for row in rows])
    count = sum(len(row.scores) for row in rows)
    return {"rows": len(rows), "answers": count, "metrics": metrics, "output": output, "notices": notices}


def _left_out(rows: Sequence[Scored], kept: list[Scored], why: str, notices: list[str]) -> list[Scored]:
    """Return `kept`, and say in `notices` how many of the rows are not among them, and which is the first."""
    if len(kept) < len(rows):
        there = {id(row) for row in kept}
        first = next(row for row in rows if id(row) not in there).record.origin
        notices.append(f"{len(rows) - len(kept)} of {len(rows)} rows {why} and are left out; the first is {first}")
    return kept


def _answers(record: Record) -> list[Chat]:
    """Return each answer of a record after its prompt, as a chat that ends with it; none where it has no answer."""
    chats = []
    for chat in kinds.as_chats(record):
        last = next((i for i in range(len(chat.messages) - 1, 0, -1) if chat.trained[i]), None)
        if last is not None:
            trained = [*[False] * last, True]
            chats.append(replace(chat, messages=chat.messages[: last + 1], trained=trained))
    return chats


def _whole(row: Scored) -> bool:
    """Whether all answers of a row were scored; a preference without one of its answers compares others than it says."""
    wanted = len(row.record.answers) if isinstance(row.record, Preference) else 1
    return len(row.scores) == wanted


def _wanted(records: Sequence[Record]) -> str:
    found = {KINDS[type(record)] for record in records}
    what = f"it holds {' and '.join(sorted(found))} rows" if found else "it is empty"
    return f"{what}, and a reward model scores preferences, verdicts and chats"


def _lengths(chats: Sequence[Chat], tokenizer: Any) -> Any:
    """Return the tokens of each chat's last answer, (N,)."""
    texts = [content_text(chat.messages[-1]) for chat in chats]
    return np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids], dtype=np.float64)


def _with_scores(row: Scored, reward: str, heads: Sequence[str]) -> Record:
    said: dict[str, Any] = {"reward": reward, "from": str(row.record.origin), "scores": row.scores.tolist()}
    if len(heads) > 1:
        said["heads"] = {head: row.parts[:, k].tolist() for k, head in enumerate(heads)}
    return replace(row.record, extra={**row.record.extra, "scored": said})
