"""What is told of a reward model on held-out rows: accuracy, calibration, margins by category, and whether it scores length.

calibration: sigmoid(r_a - r_b) is the probability that the model gives to a being preferred over b, so of the pairs it is 70% sure of 70%
should be ranked right. The expected calibration error (Naeini et al., 2015) is the mean distance between the two over bins of confidence.
length: the correlation of score and answer length among the answers to one prompt; where rows have one answer each, among all of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith import run
from tunesmith.data.content import answer_texts
from tunesmith.data.records import Chat, Examples, Record
from tunesmith.evaluation import statistics
from tunesmith.model.reward import RewardPolicy
from tunesmith.model.reward_scores import score_examples
from tunesmith.training.objective import Metrics, margin_metric, metric
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.reward_rows import LABEL

Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
BINS = 10  # of confidence, from 50% to 100%
BIAS = 0.1**0.5  # a correlation beyond which length explains more than a tenth of how far scores are apart
FEWEST = 10  # rows of a category that is told apart, and of an alarm


class Pairs(NamedTuple):
    """Pairs of answers to one prompt, P of them: examples `first` and `second`, the better one first, (P,); row (P,): whose they are;
    weight (P,), which adds up to 1 over a row."""

    first: Indices
    second: Indices
    row: Indices
    weight: Numbers


def measure(
    policy: RewardPolicy, examples: Examples, records: Sequence[Record], tokens: int, world: World = ALONE
) -> tuple[Metrics, dict[str, Any]]:
    """Return metrics by name ("calibration_error", "preference_accuracy/CATEGORY", "reward_margin/CATEGORY", "length_bias",
    "rating_error/NAME", "rating_correlation/NAME"; those that the rows tell), and the report's facts, of what `describe` says."""
    scores = score_examples(policy, examples, tokens, world)
    facts = describe(scores, policy.attributes, examples, records)
    found: Metrics = {}
    if "calibration" in facts:
        found["calibration_error"] = {k: facts["calibration"][k] for k in ("value", "n", "low", "high")}
    for entry in facts["categories"] if len(facts["categories"]) > 1 else []:
        for name, key in (("preference_accuracy", "accuracy"), ("reward_margin", "margin")):
            found[f"{name}/{entry['category']}"] = entry[key]
    if facts["length"] is not None:
        found["length_bias"] = {k: facts["length"][k] for k in ("value", "n", "low", "high")}
    for entry in facts["attributes"]:
        for key in ("rating_error", "rating_correlation"):
            if key in entry:
                found[f"{key}/{entry['name']}"] = entry[key]
    return found, facts


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Add the facts to a run's results.json, for its report."""
    run.write_json(path, {**json.loads(path.read_text()), "reward": facts})


def describe(
    scores: Numbers, attributes: Sequence[tuple[str, float]], examples: Examples, records: Sequence[Record]
) -> dict[str, Any]:
    """Return {"rows", "pairs", "calibration" (with pairs): {"value", "n", "low", "high", "bins"}, "categories": [{"category", "accuracy",
    "margin"}], "length", "attributes": [{"name", "weight", "mean", "deviation", ...}]}; scores (E,K) are the examples'."""
    assert examples.groups is not None
    assert examples.answer is not None
    combined = scores @ np.array([weight for _, weight in attributes])
    pairs = pairs_of(examples)
    margins = combined[pairs.first] - combined[pairs.second]
    row_of = np.repeat(np.arange(examples.rows), np.diff(examples.groups))
    texts = [_answers(records[record]) for record in examples.row_record]
    lengths = np.array([len(texts[row][a]) for row, a in zip(row_of, examples.answer, strict=True)])
    facts: dict[str, Any] = {"rows": examples.rows, "pairs": len(margins), "categories": []}
    if len(margins):
        facts["calibration"] = calibration(margins, pairs, examples.rows)
        names = [str(records[record].extra.get("category") or "") for record in examples.row_record]
        facts["categories"] = by_category(margins, pairs, names)
    facts["length"] = length_bias(combined, lengths.astype(float), row_of, lengths[pairs.first] - lengths[pairs.second])
    facts["attributes"] = [
        _attribute(name, weight, scores[:, k], examples) for k, (name, weight) in enumerate(attributes)
    ]
    return facts


def _answers(record: Record) -> list[str]:
    """Return the texts of the answers that are scored: of a conversation the last."""
    found = answer_texts(record)
    return (found or [""])[-1:] if isinstance(record, Chat) else found


def pairs_of(examples: Examples) -> Pairs:
    """Return the pairs within each row, but those that tie; without values the answer that stands first is the better one."""
    assert examples.groups is not None
    assert examples.values is not None
    first, second, row, weight = [], [], [], []
    for g, (start, stop) in enumerate(zip(examples.groups[:-1].tolist(), examples.groups[1:].tolist(), strict=True)):
        values = examples.values[start:stop]
        better = [(i, j) for i in range(stop - start) for j in range(i + 1, stop - start) if values[i] != values[j]]
        first += [start + i for i, _ in better]
        second += [start + j for _, j in better]
        row += [g] * len(better)
        weight += [1 / max(1, len(better))] * len(better)
    ints = [np.array(x, dtype=np.int64) for x in (first, second, row)]
    return Pairs(ints[0], ints[1], ints[2], np.array(weight))


def calibration(margins: Numbers, pairs: Pairs, rows: int) -> dict[str, Any]:
    """Return the expected calibration error of sigmoid(margin) with its 95% interval over rows, and per bin of confidence {"from", "to",
    "n" (pairs), "confidence", "accuracy"}, bins without a pair left out."""
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = np.heaviside(margins, 0.5)
    bins = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.zeros((rows, BINS))
    np.add.at(gaps, (pairs.row, bins), pairs.weight * (right - sure))
    told = np.unique(pairs.row)
    gaps = gaps[told]

    def error(counts: Numbers) -> Numbers:
        return np.asarray(np.abs(counts @ gaps).sum(1) / counts.sum(1))

    table = []
    for b in np.unique(bins).tolist():
        mine = bins == b
        mean = [float(np.average(x[mine], weights=pairs.weight[mine])) for x in (sure, right)]
        edges = {"from": 0.5 + b / (2 * BINS), "to": 0.5 + (b + 1) / (2 * BINS)}
        table.append({**edges, "n": int(mine.sum()), "confidence": mean[0], "accuracy": mean[1]})
    low, high = statistics.percentile_interval(_resampled(error, len(told)))
    return {"value": float(error(np.ones((1, len(told))))[0]), "n": len(told), "low": low, "high": high, "bins": table}


def by_category(margins: Numbers, pairs: Pairs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return [{"category", "accuracy", "margin"}] over the rows of each category of FEWEST rows or more, the lowest accuracy first.

    names: each row's category, "" for none. A row's pairs make up one number.
    """
    right, margin = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(right, pairs.row, pairs.weight * np.heaviside(margins, 0.5))
    np.add.at(margin, pairs.row, pairs.weight * margins)
    told = np.unique(pairs.row)
    found = []
    for name in sorted({names[row] for row in told.tolist()} - {""}):
        mine = np.array([row for row in told.tolist() if names[row] == name])
        if len(mine) >= FEWEST:
            found.append({"category": name, "accuracy": metric(right[mine]), "margin": margin_metric(margin[mine])})
    return sorted(found, key=lambda entry: entry["accuracy"]["value"])


def length_bias(scores: Numbers, lengths: Numbers, row: Indices, apart: Indices) -> dict[str, Any] | None:
    """Return {"value" (the size of the correlation), "n", "low", "high", "correlation", "longer" (how often the data prefers the longer
    answer, None without pairs), "alarm" (a sentence, or None)}; None where scores or lengths do not differ, or of so few answers that any
    two numbers follow each other. Less than FEWEST rows raise no alarm.

    scores, lengths (E,) of examples of the rows `row` (E,), ascending; apart (P,): by how much each pair's better answer is the longer.
    """
    rows, number = np.unique(row, return_inverse=True)
    sizes = np.bincount(number)
    within = bool((sizes > 1).any())
    of, n = (number, len(rows)) if within else (np.zeros(len(row), dtype=np.int64), len(row))
    x, y = (v - (np.bincount(of, v) / np.bincount(of))[of] for v in (scores, lengths))
    unit = number if within else np.arange(len(row))
    sums = np.stack([np.bincount(unit, v, minlength=n) for v in (x * y, x * x, y * y)], 1)
    sums = sums[sizes > 1] if within else sums
    free = int((sizes - 1).sum()) if within else len(row) - 1
    if free < 2 or not sums.sum(0)[1:].all():
        return None

    def correlation(counts: Numbers) -> Numbers:
        xy, xx, yy = (counts @ sums).T
        return np.asarray(xy / np.sqrt(np.maximum(xx * yy, 1e-300)))

    value = float(correlation(np.ones((1, len(sums))))[0])
    low, high = statistics.percentile_interval(_resampled(correlation, len(sums)))
    differ = apart[apart != 0]
    longer = float((differ > 0).mean()) if len(differ) else None
    sizes_ = sorted((abs(low), abs(high))) if low * high > 0 else [0.0, max(abs(low), abs(high))]
    return {
        "value": abs(value),
        "n": len(sums),
        "low": sizes_[0],
        "high": sizes_[1],
        "correlation": value,
        "longer": longer,
        "alarm": alarm(value, low, high, longer) if len(sums) >= FEWEST else None,
    }


def alarm(value: float, low: float, high: float, longer: float | None) -> str | None:
    """Return a sentence where scores follow length: the correlation is beyond BIAS, and its interval (low, high) leaves 0 out."""
    if abs(value) <= BIAS or low * high <= 0:
        return None
    more, less = ("longer", "shorter") if value > 0 else ("shorter", "longer")
    data = f"; the data prefers the longer answer in {longer:.0%} of its pairs" if longer is not None else ""
    return (
        f"the reward model scores length: {more} answers have higher scores (correlation {value:.2f}, from {low:.2f} to {high:.2f}), which "
        f"explains {value * value:.0%} of how far scores are apart{data}. What is chosen or trained by it will be {more}; add pairs whose "
        f"better answer is the {less} one."
    )


def _attribute(name: str, weight: float, scores: Numbers, examples: Examples) -> dict[str, Any]:
    """Return {"name", "weight", "mean", "deviation"}, and "rating_error" (root of the mean square) and "rating_correlation" with intervals
    where the rows rate the attribute by more than two values."""
    found: dict[str, Any] = {
        "name": name,
        "weight": weight,
        "mean": float(scores.mean()),
        "deviation": float(scores.std()),
    }
    labels = examples.constants.get(LABEL + name)
    if labels is None or len(np.unique(labels[~np.isnan(labels)])) <= 2:
        return found
    rated = ~np.isnan(labels)
    x, y = scores[rated], labels[rated].astype(np.float64)
    sums = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, (x - y) ** 2], 1)

    def error(counts: Numbers) -> Numbers:
        return np.asarray(np.sqrt((counts @ sums[:, 6]) / counts.sum(1)))

    def correlation(counts: Numbers) -> Numbers:
        n, sx, sy, sxx, syy, sxy, _ = (counts @ sums).T
        return np.asarray((n * sxy - sx * sy) / np.sqrt(np.maximum((n * sxx - sx**2) * (n * syy - sy**2), 1e-300)))

    for key, function in (("rating_error", error), ("rating_correlation", correlation)):
        low, high = statistics.percentile_interval(_resampled(function, len(x)))
        value = float(function(np.ones((1, len(x))))[0])
        found[key] = {"value": value, "n": len(x), "low": low, "high": high}
    return found


def _resampled(function: Any, n: int) -> Numbers:
    """Return `function` of how often each of n rows is drawn (draws, n), for RESAMPLES draws of n rows with replacement."""
    rng, parts, left = np.random.default_rng(0), [], statistics.RESAMPLES
    while left > 0:
        some = min(left, max(1, 4_000_000 // n))
        parts.append(function(rng.multinomial(n, np.full(n, 1 / n), size=some).astype(np.float64)))
        left -= some
    return np.concatenate(parts)
