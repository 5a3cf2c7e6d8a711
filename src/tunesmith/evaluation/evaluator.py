"""Measure a model on rows of data: log-probabilities and answers are made once, and every metric reads them.

The verb `evaluate` is at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.data.records import KINDS, Chat, Prompt, Record, Text
from tunesmith.errors import InputError
from tunesmith.evaluation.items import Item, make_items
from tunesmith.evaluation.statistics import mean_of_means_interval
from tunesmith.training.parallel import ALONE, World

if TYPE_CHECKING:
    from tunesmith.data.sources import Loaded

SHORT_REFERENCE = 32  # tokens: up to here (by the median) exact match says something
LONGEST_ANSWER = 256  # tokens, where nothing else is asked
READS = (Chat, Prompt, Text)


@dataclass
class Evaluation:
    """`metrics`: {NAME: {"value", "n", "low", "high"}}, with NAME/category entries where rows carry a category.

    `items` is one per row, with answers and scores; `notices` are sentences for people.
    """

    metrics: dict[str, dict[str, Any]]
    items: list[Item]
    notices: list[str] = field(default_factory=list)


def check_metrics(metrics: Sequence[dict[str, Any]], where: str = "evaluate") -> None:
    """InputError unless every entry is {"name": a metric, **options of its score function}."""
    for number, entry in enumerate(metrics):
        named(entry, "evaluation.metrics", "score", f"metric {number + 1}", where, skip=("item",))


def check_rules(records: Sequence[Record], metrics: Sequence[dict[str, Any]]) -> None:
    """InputError naming the first row whose `check` is no rule, where the metric `rule` is asked."""
    from tunesmith.evaluation.rules import check_rule

    for record in records if any(m["name"] == "rule" for m in metrics) else ():
        if "check" in record.extra:
            try:
                check_rule(record.extra["check"])
            except InputError as e:
                raise InputError(f"{record.origin}: {e}") from e


def check_rows(loaded: "Loaded") -> None:
    """InputError where a file holds what no metric measures."""
    reads = [KINDS[kind] for kind in READS]
    for file in loaded.files:
        wrong = next((kind for kind in file.kinds if kind not in reads), None)
        if wrong is not None:
            raise InputError(
                f"{file.path} holds {wrong} rows, and metrics measure {', '.join(reads)} rows; from Python, measure its good answers "
                f'with data={{"path": "{file.path}", "as": "chat"}}, or give rows with one answer each.'
            )


def default_metrics(items: Sequence[Item], tokenizer: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the metrics that suit the rows, and the reason in words.

    `rule` where a row carries a check; else exact match where the median reference has at most 32 tokens. Perplexity too, unless
    no row has anything to score. InputError where there is nothing to measure.
    """
    scored = any(item.reference is not None or isinstance(item.record, Text) for item in items)
    if any("check" in item.record.extra for item in items):
        if not scored:
            return [{"name": "rule"}], "rule only: the rows state rules (check) and hold no answers"
        return [{"name": "rule"}, {"name": "perplexity"}], "rule and perplexity: the rows state rules (check)"
    if not scored:
        raise InputError(
            "there is nothing to measure: no row has an answer, a reference or a rule (check); `tunesmith generate` answers prompts."
        )
    references = [item.reference for item in items if item.reference is not None]
    if references:
        middle = int(np.median([len(ids) for ids in tokenizer(references, add_special_tokens=False).input_ids]))
        if middle <= SHORT_REFERENCE:
            reason = f"exact_match and perplexity: the references are short ({middle} tokens by the median)"
            return [{"name": "exact_match"}, {"name": "perplexity"}], reason
        return [{"name": "perplexity"}], f"perplexity only: references ({middle} tokens by the median) are too long"
    return [{"name": "perplexity"}], "perplexity only: the rows hold no references"


def evaluate_records(
    policy: Any,
    tokenizer: Any,
    records: Sequence[Record],
    metrics: Sequence[dict[str, Any]] | None = None,
    *,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    world: World = ALONE,
) -> Evaluation:
    """Return the metrics of a policy on records, greedy answers included.

    `metrics` None means default_metrics. max_length (default: the model's context) is where rows are cut for
    perplexity; max_new_tokens defaults to twice the longest reference plus 16, at most 256. Rows whose prompt leaves no
    room for an answer are left out of the metrics that need one, and a notice names the first. The processes of `world`
    share the work, and all get all results. InputError for a metric that no row can serve.
    """
    items = make_items(records, tokenizer)
    notices = []
    if metrics is None:
        metrics, reason = default_metrics(items, tokenizer)
        notices.append(f"metrics: {reason}")
    check_metrics(metrics)
    check_rules(records, metrics)
    modules = {entry["name"]: registry.load("evaluation.metrics", entry["name"]) for entry in metrics}
    needs = {module.NEEDS for module in modules.values()}
    if "logps" in needs:
        notices += _score_tokens(policy, tokenizer, items, max_length, world)
    if "answers" in needs:
        notices += _answer(policy, tokenizer, items, max_new_tokens, batch_size, seed, world)
    results: dict[str, dict[str, Any]] = {}
    for entry in metrics:
        options = {key: value for key, value in entry.items() if key != "name"}
        results.update(_measure(entry["name"], modules[entry["name"]], items, options, seed))
    return Evaluation(results, items, notices)


def _score_tokens(policy: Any, tokenizer: Any, items: list[Item], max_length: int | None, world: World) -> list[str]:
    """Fill in nll and tokens; return the renderer's notices."""
    from tunesmith.data.render import render
    from tunesmith.model.generate import context_length
    from tunesmith.training.scoring import example_nll

    longest = max_length or context_length(policy.model)
    examples, notices = render([item.record for item in items], tokenizer, longest)
    nll, tokens = example_nll(policy, examples, world=world)
    for record, n, t in zip(examples.record.tolist(), nll.tolist(), tokens.tolist(), strict=True):
        items[record].nll += n  # a template that rewrites its history makes several examples of a row
        items[record].tokens += t
    return list(notices)


def _answer(
    policy: Any,
    tokenizer: Any,
    items: list[Item],
    max_new_tokens: int | None,
    batch_size: int | None,
    seed: int,
    world: World,
) -> list[str]:
    """Fill in the answers; return notices about rows that got none."""
    from tunesmith.model.generate import context_length, encode_prompts, generate

    asked = [item for item in items if item.prompt]
    chats = [(item.prompt, getattr(item.record, "tools", None)) for item in asked]
    prompts = encode_prompts(tokenizer, chats, [item.record.origin for item in asked])
    context = context_length(policy.model)
    fits = [context is None or len(p) < context for p in prompts]
    left_out = [item for item, fit in zip(asked, fits, strict=True) if not fit]
    notices = []
    if left_out:
        notices.append(
            f"{len(left_out)} of {len(asked)} prompts fill the context of {context} tokens and got no answer, "
            f"so they do not count; the first is {left_out[0].record.origin}"
        )
    asked = [item for item, fit in zip(asked, fits, strict=True) if fit]
    prompts = [p for p, fit in zip(prompts, fits, strict=True) if fit]
    if max_new_tokens is None:
        max_new_tokens = answer_length(asked, tokenizer)
    with policy.plain_attention():
        answers = generate(
            policy.model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            world=world,
        )
    for item, answer in zip(asked, answers, strict=True):
        item.answer = answer.strip()
    return notices


def answer_length(items: Sequence[Item], tokenizer: Any) -> int:
    """Return how many tokens an answer may have: 2 x the longest reference + 16, at most 256; 256 without any."""
    references = [item.reference for item in items if item.reference is not None]
    if len(references) < len(items) or not references:
        return LONGEST_ANSWER
    longest = max(len(ids) for ids in tokenizer(references, add_special_tokens=False).input_ids)
    return min(LONGEST_ANSWER, 2 * longest + 16)


def _measure(
    name: str, module: ModuleType, items: list[Item], options: dict[str, Any], seed: int
) -> dict[str, dict[str, Any]]:
    """Score every item and return {name, name/category..., name/families}.

    `name` is over all rows together. Where there are several categories, name/families is the mean over categories,
    each counting the same (for metrics of answers: a mean of perplexities means nothing).
    """
    groups: dict[str | None, list[tuple[float, float]]] = {}
    for item in items:
        if module.NEEDS == "answers" and item.answer is None:
            continue
        score = module.score(item, **options)
        if score is not None:
            item.scores[name] = score
            groups.setdefault(item.category, []).append(score)
    if not groups:
        lack = (
            "scored tokens"
            if module.NEEDS == "logps"
            else "a prompt that fits the context and an answer to compare with"
        )
        raise InputError(f"the metric {name} has nothing to measure: no row has {lack}.")
    tables = {category: np.array(scores, dtype=np.float64) for category, scores in groups.items()}
    everything = np.concatenate(list(tables.values()))
    results = {name: module.aggregate(everything[:, 0], everything[:, 1])}
    families = {category: tables[category] for category in sorted(c for c in tables if c is not None)}
    for category, table in families.items():
        results[f"{name}/{category}"] = module.aggregate(table[:, 0], table[:, 1])
    if len(families) > 1 and module.NEEDS == "answers":
        means = [float(table[:, 0].mean()) for table in families.values()]
        low, high = mean_of_means_interval([table[:, 0] for table in families.values()], seed)
        results[f"{name}/families"] = {"value": float(np.mean(means)), "n": len(means), "low": low, "high": high}
    return results


def evaluate(
    model: str,
    *,
    adapter: str | None = None,
    data: Any,
    metrics: Sequence[str | dict[str, Any]] | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    quantize: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a model on data: {"metrics": {NAME: {"value", "n", "low", "high"}}, "notices": [sentence]}.

    `data` is a path, hub id or mapping as in a run file's `data`, or a list of them; `limit` takes its first rows;
    `metrics` are names or {name, options} (None: default_metrics); `quantize` says how the
    base is held, as in tunesmith.model.inference.check. The rest as in evaluate_records. Model, data, metrics
    and rules are checked before a weight is loaded (InputError).
    """
    from tunesmith.data.sources import load
    from tunesmith.model import inference, loading
    from tunesmith.model.policy import make_policy

    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1.")
    asked = None if metrics is None else [{"name": m} if isinstance(m, str) else m for m in metrics]
    check_metrics(asked or [])
    loading.resolve(model, adapter)  # a wrong name is said before data is read, and wrong data before torch is loaded
    loaded = load(data, READS)
    check_rows(loaded)
    checked = inference.check(model, adapter, device, quantize)
    records = loaded.records[:limit]
    notices = checked.notices + loaded.notices
    if asked is None:
        asked, reason = default_metrics(make_items(records, checked.tokenizer), checked.tokenizer)
        notices.append(f"metrics: {reason}")
    check_rules(records, asked)
    policy, sentence = make_policy(checked.load())
    found = evaluate_records(
        policy, checked.tokenizer, records, asked, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed
    )
    return {"metrics": found.metrics, "notices": [*notices, sentence, *found.notices]}
