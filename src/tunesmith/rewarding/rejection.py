"""Rejection sampling: answers are sampled and scored, and the best become rows to train on (RAFT: Dong et al., 2023, arXiv 2304.06767;
Llama 2: Touvron et al., 2023, arXiv 2307.09288), or the best against the worst a preference set of the model's own.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from tunesmith.data.records import Preference, Record
from tunesmith.errors import InputError, did_you_mean
from tunesmith.evaluation.statistics import Floats, mean_interval
from tunesmith.rewarding.asking import Asking, prepare
from tunesmith.rewarding.best_of import best_of_metrics, kl, ranking, told_kl
from tunesmith.rewarding.candidates import Answer, Question, Sampling, Told
from tunesmith.rewarding.output import check as check_output
from tunesmith.rewarding.output import write as write_rows
from tunesmith.rewarding.rewards import answered

Form = Literal["chat", "pairs", "ranked"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which answers become rows. form: chat (the `keep` best, each a row), pairs (the best against the worst), ranked (all, with
    their scores). min_reward: of an answer that is kept as good; min_margin: between the best and the worst."""

    form: Form = "chat"
    keep: int = 1
    min_reward: float | None = None
    min_margin: float = 0.0

    def check(self, n: int) -> None:
        """InputError for a value that is out of range, or that the form does not use."""
        forms = get_args(Form)
        near = did_you_mean(str(self.form), forms)
        rules = (
            (self.form in forms, f'there is no form "{self.form}" of rows; there are {", ".join(forms)}.{near}'),
            (1 <= self.keep <= n, f"keep is {self.keep}; of {n} answers it must be from 1 to {n}."),
            (
                self.form == "chat" or self.keep == 1,
                f"keep is for rows of single answers; {self.form} rows hold several.",
            ),
            (self.min_margin >= 0, f"min_margin is {self.min_margin}; it must be 0 or more."),
            (
                self.form != "chat" or not self.min_margin,
                "min_margin is for pairs and ranked rows; for single answers give min_reward.",
            ),
            (self.form == "chat" or n > 1, f"best_of is {n}; {self.form} rows take 2 answers at least."),
        )
        for right, sentence in rules:
            if not right:
                raise InputError(sentence)


def sample(
    model: str,
    *,
    data: Any,
    reward: str | None,
    output: str,
    best_of: int = 8,
    form: Form = "chat",
    keep: int = 1,
    min_reward: float | None = None,
    min_margin: float = 0.0,
    limit: int | None = None,
    adapter: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    told: Told = lambda said: None,
) -> dict[str, Any]:
    """Sample `best_of` answers to each prompt of `data`, score them by `reward` (rewards.find), write the best to `output` (JSONL).

    What becomes a row: see Choice. Answers that are empty, that reach max_new_tokens, or that are there already are never part of
    one. A row has its prompt's other fields (check, category) and its "provenance": model, reward, score, seed and row of the data.

    Returns {"output", "rows", "prompts", "answers", "left_out": {why: count}, "best_of", "kl", "metrics": best_of_metrics and
    reward_kept, "notices"}. Answers are kept in the cache as they come: interrupted, the same call goes on, and with another reward
    or form nothing is sampled anew. InputError for anything wrong, before weights load, and where no row is left.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, tuple(stop), seed)
    choice = Choice(form, keep, min_reward, min_margin)
    sampling.check(best_of)
    choice.check(best_of)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1.")
    check_output(output)
    asking = prepare(
        model, reward, data=data, limit=limit, every=False, adapter=adapter, quantize=quantize, device=device
    )
    answers, scores = asking.answers(best_of, sampling, keep=True, told=told)
    scores = [np.where([a.whole for a in said], own, np.nan) for said, own in zip(answers, scores, strict=True)]
    left_out: Counter[str] = Counter()
    records, good = [], []
    for question, said, own in zip(asking.asked, answers, scores, strict=True):
        places = usable(said, own, left_out)
        lineage = _lineage(asking, question, best_of, seed)
        for record, score in rows_of(question, said, own, places, choice, lineage, left_out):
            records.append(record)
            good.append(score)
    if not records:
        why = ", ".join(f"{said}: {count:,}" for said, count in left_out.most_common())
        raise InputError(
            f"no answer is left to write ({why}); lower the bounds, or raise --max-new-tokens or --best-of."
        )
    write_rows(output, records)
    return {
        "output": output,
        "rows": len(records),
        "prompts": len(asking.asked),
        "answers": len(asking.asked) * best_of,
        "left_out": dict(left_out.most_common()),
        "best_of": best_of,
        "kl": kl(best_of),
        "metrics": best_of_metrics(scores, seed) | {"reward_kept": _mean(good, seed)},
        "notices": [*asking.notices, told_kl(best_of)],
    }


def usable(answers: Sequence[Answer], scores: Floats, left_out: Counter[str]) -> list[int]:
    """Return the places of the answers that a row can hold, the best score first; count the others by why they are left out."""
    places, seen = [], set()
    for place in ranking(scores):
        text = answers[place].text
        if not answers[place].whole:
            left_out["answers that reach max_new_tokens"] += 1
        elif not text:
            left_out["empty answers"] += 1
        elif math.isnan(scores[place]):
            left_out["answers beyond the reward model's context"] += 1
        elif text in seen:
            left_out["answers that are there already"] += 1
        else:
            places.append(place)
            seen.add(text)
    return places


def rows_of(
    question: Question,
    answers: Sequence[Answer],
    scores: Floats,
    places: Sequence[int],
    choice: Choice,
    lineage: dict[str, Any],
    left_out: Counter[str],
) -> Iterator[tuple[Record, float]]:
    """Yield what `choice` makes of a prompt's answers at `places` (the best first): rows, each with the score of its best answer."""
    if not places:
        left_out["prompts without an answer of use"] += 1
        return
    best, worst = float(scores[places[0]]), float(scores[places[-1]])
    if choice.min_reward is not None and best < choice.min_reward:
        left_out[f"prompts whose best reward is below {choice.min_reward:g}"] += 1
        return
    if choice.form == "chat":
        for place in places[: choice.keep]:
            if choice.min_reward is None or scores[place] >= choice.min_reward:
                score = float(scores[place])
                chat = answered(question.item, answers[place].text)
                yield replace(chat, extra={**chat.extra, "provenance": lineage | {"score": score}}), score
        return
    if best - worst <= choice.min_margin:
        bound = f" by more than {choice.min_margin:g}" if choice.min_margin else ""
        left_out[f"prompts whose best answer is not better than their worst{bound}"] += 1
        return
    wanted = [places[0], places[-1]] if choice.form == "pairs" else places
    record = question.item.record
    turns = [[{"role": "assistant", "content": answers[place].text}] for place in wanted]
    points = [float(scores[place]) for place in wanted]
    extra = {**record.extra, "provenance": lineage}
    yield Preference(question.item.prompt, turns, record.origin, points, getattr(record, "tools", None), extra), best


def _lineage(asking: Asking, question: Question, n: int, seed: int) -> dict[str, Any]:
    """Return how a prompt's rows were made; what a row said of how the prompt itself was made stays inside."""
    made = {
        "method": f"best of {n}",
        "model": asking.model,
        **({} if asking.adapter is None else {"adapter": asking.adapter}),
        "reward": asking.reward.name,
        "seed": seed,
        "from": str(question.item.record.origin),
    }
    before = question.item.record.extra.get("provenance")
    return made if before is None else made | {"prompt": before}


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    found = np.array(values)
    low, high = mean_interval(found, seed)
    return {"value": float(found.mean()), "n": len(found), "low": low, "high": high}
