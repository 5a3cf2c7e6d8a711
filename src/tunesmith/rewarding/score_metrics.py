"""What scores of answers say of a reward: how often the better answer has more, by how much, and whether it follows length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.records import Preference, Record, Verdict
from tunesmith.evaluation.statistics import Floats, bootstrap_ratios, mean_interval, percentile_interval

Metric = dict[str, Any]
Indices = npt.NDArray[np.int64]
DRAWS = 1000  # of the bootstrap of an AUC, each of which sorts


@dataclass(frozen=True, slots=True)
class Scored:
    """A row and its answers' scores (A,) and lengths in tokens (A,); parts (A,K): of each head of the reward model."""

    record: Record
    scores: Floats
    lengths: Floats
    parts: Floats

    @property
    def category(self) -> str | None:
        """The row's own `category`, if it has one."""
        found = self.record.extra.get("category")
        return None if found is None else str(found)

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        """The better and the worse answer of each pair of a preference that are of unequal worth in the data, (P,) each."""
        if not isinstance(self.record, Preference):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        worth = np.array(self.record.scores or range(len(self.record.answers), 0, -1), dtype=np.float64)
        better, worse = np.nonzero(worth[:, None] > worth)
        return better, worse


def measure(rows: Sequence[Scored], heads: Sequence[str], seed: int = 0) -> tuple[dict[str, Metric], str | None]:
    """Return {NAME: {"value", "n", "low", "high"}} of what the rows can tell, and a sentence where the reward follows length:

    score                  mean over all answers; score_HEAD where the model has several heads (K names)
    preference_accuracy    share of a preference's pairs whose better answer scores more, a tie is half, mean over rows
    reward_margin          by how much, mean over rows
    calibration_error, length_bias    as a reward model's run tells them (tunesmith.training.reward_report)
    verdict_auc            how often a good answer scores more than a bad one, of all that are judged; a tie is half

    and NAME/CATEGORY of the first three, where rows carry a category.
    """
    found = _means(rows, seed)
    for k, head in enumerate(heads if len(heads) > 1 else ()):
        found[f"score_{head}"] = _mean([p for row in rows for p in row.parts[:, k]], seed)
    found["verdict_auc"] = _auc(rows, seed)
    found["calibration_error"], found["length_bias"], alarm = _told_of_runs(rows)
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        if row.category is not None:
            groups.setdefault(row.category, []).append(row)
    for category, own in sorted(groups.items()):
        found |= {f"{name}/{category}": metric for name, metric in _means(own, seed).items()}
    return {name: metric for name, metric in found.items() if metric is not None}, alarm


def _means(rows: Sequence[Scored], seed: int) -> dict[str, Metric | None]:
    """Return the means that are told of all rows and of each category."""
    leads = [row.scores[better] - row.scores[worse] for row in rows for better, worse in [row.pairs] if len(better)]
    right = np.array([float((np.sign(lead) + 1).mean() / 2) for lead in leads])
    accuracy = None
    if leads:
        low, high = mean_interval(right, seed)
        accuracy = {"value": float(right.mean()), "n": len(right), "low": low, "high": high}
    return {
        "score": _mean([score for row in rows for score in row.scores], seed),
        "preference_accuracy": accuracy,
        "reward_margin": _mean([float(lead.mean()) for lead in leads], seed),
    }


def _mean(values: Sequence[float], seed: int) -> Metric | None:
    """Return the mean of scores, or of differences, with the bootstrap's interval."""
    if not values:
        return None
    found = np.array(values, dtype=np.float64)
    low, high = percentile_interval(bootstrap_ratios(found, np.ones(len(found)), seed))
    return {"value": float(found.mean()), "n": len(found), "low": low, "high": high}


def _told_of_runs(rows: Sequence[Scored]) -> tuple[Metric | None, Metric | None, str | None]:
    """Return what a reward model's run tells too: calibration error, length bias, and the sentence about the latter."""
    from tunesmith.training.reward_report import Pairs, calibration, length_bias

    starts = np.cumsum([0, *(len(row.scores) for row in rows)])
    scores, lengths = (np.concatenate([getattr(row, name) for row in rows]) for name in ("scores", "lengths"))
    ends = [(starts[i] + row.pairs[0], starts[i] + row.pairs[1]) for i, row in enumerate(rows)]
    first, second = (np.concatenate(side) for side in zip(*ends, strict=True))
    counts = np.array([len(better) for better, _ in ends])
    pairs = Pairs(first, second, np.repeat(np.arange(len(rows)), counts), np.repeat(1 / np.maximum(counts, 1), counts))
    sure = calibration(scores[first] - scores[second], pairs, len(rows)) if len(first) else None
    row_of = np.repeat(np.arange(len(rows)), np.diff(starts))
    bias = length_bias(scores, lengths, row_of, (lengths[first] - lengths[second]).astype(np.int64))
    keys = ("value", "n", "low", "high")
    told = [None if of is None else {key: of[key] for key in keys} for of in (sure, bias)]
    return told[0], told[1], bias["alarm"] if bias else None


def _auc(rows: Sequence[Scored], seed: int) -> Metric | None:
    """Return the share of (good, bad) pairs of verdicts in which the good one scores more, and its bootstrap interval over answers."""
    judged = [(row.record.good, row.scores[0]) for row in rows if isinstance(row.record, Verdict)]
    good, bad = (np.array([score for found, score in judged if found is side]) for side in (True, False))
    if not len(good) or not len(bad):
        return None
    rng = np.random.default_rng(seed)
    drawn = [_share_above(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(DRAWS)]
    low, high = percentile_interval(np.array(drawn))
    return {"value": _share_above(good, bad), "n": len(judged), "low": low, "high": high}


def _share_above(good: Floats, bad: Floats) -> float:
    """Return Mann and Whitney's U over the number of pairs, from ranks; a tie is half."""
    _, place, counts = np.unique(np.concatenate([good, bad]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place[: len(good)]]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))
