"""toxicity: how toxic every row's words are, reported; with `most`, rows above it are dropped."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data.content import answer_texts, texts
from tunesmith.data.lexicon import toxic
from tunesmith.data.records import Record
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError

ORDER = 70
DEFAULT = True
Scorer = Callable[[list[str]], list[float]]
"""Scores in [0, 1] of texts, in their order."""
_BATCH = 256
_TOXIC = ("toxic", "hate", "offens", "profan", "abus", "insult", "obscen", "label_1")


def apply(
    rows: Rows,
    *,
    most: float | None = None,
    scorer: Literal["lexicon", "profanity-check", "model"] = "lexicon",
    model: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Measure the columns toxicity (a row's worst text) and toxicity_answer (its worst answer), both in [0, 1].

    Nothing is dropped unless `most` is given: then rows above it are. `scorer: profanity-check` is a linear model of
    English; `scorer: model` with `model: PATH` any sequence classifier in transformers' format (safetensors), of which
    `label` names the toxic class (default: the one whose name says so).
    """
    score = _scorer(scorer, model, label)
    for batch in _batches(rows):
        said = [[text for _, text in texts(record) if text.strip()] for _, record in batch]
        answers = [[text for text in answer_texts(record) if text.strip()] for _, record in batch]
        flat = list(dict.fromkeys(text for listed in said + answers for text in listed))
        known = dict(zip(flat, score(flat), strict=True))
        for (id_, _), row, answer in zip(batch, said, answers, strict=True):
            worst = max((known[text] for text in row), default=0.0)
            rows.column("toxicity")[id_] = worst
            rows.column("toxicity_answer")[id_] = max((known[text] for text in answer), default=0.0)
            if most is not None and worst > most:
                rows.drop(id_, f"toxicity {worst:.2f}, at most {most:g} wanted", toxicity=round(worst, 4))
    return _facts(rows, most, scorer)


def check(
    *, most: float | None = None, scorer: str = "lexicon", model: str | None = None, label: str | None = None
) -> None:
    """InputError for a bound outside [0, 1], a scorer that is not installed, a model that is not there."""
    if most is not None and not 0 <= most <= 1:
        raise InputError(f"prepare: toxicity.most should be between 0 and 1, found {most:g}.")
    if (scorer == "model") != (model is not None):
        raise InputError(
            "prepare: toxicity.scorer: model needs `model`, the folder or hub id of a sequence classifier."
            if scorer == "model"
            else f"prepare: toxicity.model is read with scorer: model only, found scorer: {scorer}."
        )
    if scorer == "profanity-check":
        _profanity_check()
    if model is not None:
        from tunesmith.model.loading import resolve

        resolve(model)


def _batches(rows: Rows) -> Iterator[list[tuple[int, Record]]]:
    batch = []
    for item in rows:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _scorer(scorer: str, model: str | None, label: str | None) -> Scorer:
    if scorer == "profanity-check":
        return _profanity_check()
    if scorer == "model":
        return classifier(str(model), label)
    return lambda said: [toxic.score(text) for text in said]


def _profanity_check() -> Scorer:
    try:
        from profanity_check import predict_prob
    except ImportError as e:
        raise InputError(
            "prepare: toxicity.scorer: profanity-check is not installed; pip install 'tunesmith[profanity]'."
        ) from e
    return lambda said: [float(p) for p in predict_prob(said)] if said else []


def classifier(model: str, label: str | None = None) -> Scorer:
    """Return a scorer by a sequence classifier: the probability of its toxic class. Texts are cut at the model's length.

    The classes are alternatives (softmax) unless the config says multi_label_classification (a sigmoid each). InputError
    where weights are no safetensors, or no class of that name is there.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tunesmith.model.loading import _one_sentence, check_weights, resolve, unreachable

    source = resolve(model)
    check_weights(source)
    local = unreachable(source.base)
    with _one_sentence(source.base, "classifier"):
        tokenizer = AutoTokenizer.from_pretrained(source.base, local_files_only=local)
        net, info = AutoModelForSequenceClassification.from_pretrained(
            source.base, use_safetensors=True, local_files_only=local, output_loading_info=True
        )
    if info["missing_keys"]:
        raise InputError(f"prepare: toxicity.model: {model} is no sequence classifier: it has no trained head.")
    net.eval()
    index = _class(net.config.id2label, label, model)
    many = net.config.problem_type == "multi_label_classification"
    longest = min(512, getattr(net.config, "max_position_embeddings", 512), tokenizer.model_max_length)

    def score(said: list[str]) -> list[float]:
        out: dict[str, float] = {}
        by_length = sorted(said, key=len)
        for start in range(0, len(by_length), 16):
            part = by_length[start : start + 16]
            inputs = tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=longest)
            with torch.inference_mode():
                logits = net(**inputs).logits.float()
            chance = logits.sigmoid() if many else logits.softmax(-1)
            out.update(zip(part, chance[:, index].tolist(), strict=True))
        return [out[text] for text in said]

    return score


def _class(names: dict[int, str], label: str | None, model: str) -> int:
    known = {str(name).lower(): int(i) for i, name in names.items()}
    if label is not None:
        if label.lower() in known:
            return known[label.lower()]
        raise InputError(f'prepare: toxicity.label: {model} has no class "{label}"; it has {", ".join(known)}.')
    for name, i in known.items():
        if any(word in name for word in _TOXIC) and not name.startswith(("non", "not", "no_", "un")):
            return i
    raise InputError(
        f"prepare: toxicity.label is needed: none of the classes of {model} ({', '.join(known)}) says toxic."
    )


def _facts(rows: Rows, most: float | None, scorer: str) -> dict[str, Any]:
    scores: npt.NDArray[np.float32] = rows.column("toxicity")
    answers = rows.column("toxicity_answer")
    seen = np.flatnonzero(~np.isnan(scores))
    measured = scores[seen]
    if not len(seen):
        return {"summary": "no rows to score"}
    edges = [0.0, 0.001, 0.2, 0.4, 0.6, 0.8, 1.0]
    counts = np.histogram(measured, bins=edges)[0]
    worst = seen[np.argsort(-measured, kind="stable")][:10]
    high, dropped = int((measured >= 0.5).sum()), 0 if most is None else int((measured > most).sum())
    done = f"; {dropped:,} above {most:g} dropped" if most is not None else ""
    return {
        "summary": f"{high:,} of {len(seen):,} rows score 0.5 or more ({scorer}){done}",
        "numbers": {
            "mean": float(measured.mean()),
            "at_least_0.5": high,
            "at_least_0.8": int((measured >= 0.8).sum()),
            "answers_at_least_0.5": int((answers[seen] >= 0.5).sum()),
        },
        "histograms": [{"title": "Toxicity by row", "edges": edges, "counts": counts.tolist()}],
        "tables": [
            {
                "title": "The rows with the highest scores",
                "columns": ["row", "score", "answer's score"],
                "rows": [
                    [str(rows[int(i)].origin), round(float(scores[i]), 3), round(float(answers[i]), 3)]
                    for i in worst
                    if scores[i] > 0
                ],
            }
        ],
    }
