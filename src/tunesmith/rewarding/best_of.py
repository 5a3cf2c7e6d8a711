"""Best-of-n: n answers to a prompt are sampled, a reward scores them, the best is taken (Stiennon et al., 2020, arXiv 2009.01325)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.errors import InputError
from tunesmith.evaluation.items import content_text
from tunesmith.evaluation.statistics import Floats, mean_interval
from tunesmith.model import loading, many
from tunesmith.rewarding.asking import TYPED, prepare
from tunesmith.rewarding.candidates import Answer, Question, Sampling, Told


def kl(n: int) -> float:
    """Return log n - (n - 1)/n, in nats: how far best-of-n is from the model it samples from, at most.

    KL(best-of-n || model) has this value where no answer comes twice and no two have one score; else it is less (Beirami et al.,
    2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def expected_best(scores: Floats, k: int) -> float:
    """Return the best score among k of the n scores (n,), in the mean over all choices: an unbiased estimate of best-of-k's reward.

    With the scores rising, sum_i C(i-1, k-1) / C(n, k) s_i (Nakano et al., 2021, arXiv 2112.09332). What has no score (NaN) is never
    the best: the mean is over the choices with one that has; NaN where none has.
    """
    rising = np.sort(np.where(np.isnan(scores), -np.inf, scores))
    chances = np.array([math.comb(i, k - 1) / math.comb(len(scores), k) for i in range(len(scores))])
    chances, rising = chances[rising > -np.inf], rising[rising > -np.inf]
    return float(chances @ rising / chances.sum()) if len(rising) else math.nan


def best_of_metrics(scores: Sequence[Floats], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return {"reward_best_of_K": {"value", "n", "low", "high"}} for K = 1, 2, 4, ... and n: expected_best in the mean over prompts.

    scores: (n,) for each prompt; prompts of which no answer has a score do not count.
    """
    n = len(scores[0])
    scores = [own for own in scores if not np.isnan(own).all()]
    metrics = {}
    for k in [*(1 << i for i in range(n.bit_length()) if 1 << i < n), n] if scores else []:
        best = np.array([expected_best(own, k) for own in scores])
        low, high = mean_interval(best, seed)
        metrics[f"reward_best_of_{k}"] = {"value": float(best.mean()), "n": len(best), "low": low, "high": high}
    return metrics


def ranking(scores: Floats) -> list[int]:
    """Return the answers' places, the best score first, NaN last; of equal ones the first that was sampled."""
    places: list[int] = np.argsort(-scores, kind="stable").tolist()
    return places


def told_kl(n: int) -> str:
    """Return the sentence about `kl`."""
    return f"best-of-{n}: at most {kl(n):.3f} nats from the model it samples from (log {n} - {n - 1}/{n})"


def answer_best(
    model: str,
    best_of: int | None,
    reward: str | None,
    prompt: str | None,
    data: Any,
    adapters: Mapping[str, str | None],
    quantize: str | None,
    device: str | None,
    sampling: Sampling,
    told: Told,
) -> dict[str, Any]:
    """Answer a prompt, or every row of `data`, with the best of `best_of` sampled answers by `reward` (see rewards.find).

    Returns {"answers": [{"prompt", "answer", "score", "candidates": [{"answer", "score"}, the best first; no score: None], and for rows
    "file", "row"}], "best_of": n, "kl": nats, "metrics": best_of_metrics, "notices"}. InputError for anything wrong, before weights load.
    """
    if best_of is None:
        raise InputError(f"the reward {reward} chooses among several answers; say of how many with --best-of N.")
    sampling.check(best_of)
    if len(adapters) > 1:
        raise InputError(
            f"the best of {best_of} answers is one adapter's, found {len(adapters)}; run it once for each."
        )
    adapter = next(iter(adapters.values()), None)
    model = loading.resolve(model).base if many.NONE in adapters else model
    asking = prepare(model, reward, prompt=prompt, data=data, adapter=adapter, quantize=quantize, device=device)
    answers, scores = asking.answers(best_of, sampling, keep=False, told=told)
    unscored = [
        question.item.record.origin for question, own in zip(asking.asked, scores, strict=True) if np.isnan(own).all()
    ]
    if unscored:
        asking.notices.append(
            f"{len(unscored)} of {len(scores)} prompts have no answer that {reward} can score (empty, or beyond its context), and get "
            f"the one that was sampled first; the first is {unscored[0]}"
        )
    return {
        "answers": [_entry(*one) for one in zip(asking.asked, answers, scores, strict=True)],
        "best_of": best_of,
        "kl": kl(best_of),
        "metrics": best_of_metrics(scores, sampling.seed),
        "notices": [*asking.notices, told_kl(best_of)],
    }


def _entry(question: Question, answers: Sequence[Answer], scores: Floats) -> dict[str, Any]:
    candidates = [{"answer": answers[i].text, "score": _number(scores[i])} for i in ranking(scores)]
    entry = {"prompt": content_text(question.item.prompt[-1]), **candidates[0], "candidates": candidates}
    origin = question.item.record.origin
    return entry if origin.file == TYPED else entry | {"file": origin.file, "row": origin.row}


def _number(score: float) -> float | None:
    return None if math.isnan(score) else float(score)
