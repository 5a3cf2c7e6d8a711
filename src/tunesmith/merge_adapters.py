"""The verb `merge`: adapters into one by weights, with a measured report beside the parts; or one adapter into its base."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import run
from tunesmith.errors import InputError
from tunesmith.merge_settings import parts, refuse_output, refuse_with_base, settings, sources_of
from tunesmith.model.loading import ModelSource
from tunesmith.training import disk

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.data.sources import Loaded
    from tunesmith.model import many

REPORT = "merge.json"
Metrics = dict[str, dict[str, dict[str, Any]]]


def merge(
    adapters: "many.Given",
    *,
    output: str | os.PathLike[str],
    weights: Sequence[float] | None = None,
    method: str | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    model: str | None = None,
    data: Any = None,
    metrics: Sequence[str | dict[str, Any]] | None = None,
    limit: int | None = None,
    into_base: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Merge LoRA adapters (folders or NAME=DIR) into one PEFT folder, `output`; or one adapter of most kinds into its base.

    weights: one per adapter (default 1/n; 1 for ties, which takes means). method: one of tunesmith.model.merging.METHODS (default cat,
    the exact weighted sum, or svd where a rank is given). density: of ties, dare and magnitude_prune (default 0.5). seed: of dare
    (default 0). model: the base, where the adapters name another place of it. data, metrics, limit: what base, parts and merge are
    measured on, as in evaluate.

    Returns what is in output/merge.json: {"output", "recipe" (base, parts with checksums, method, weights and settings), "rank", "deltas"
    (tunesmith.model.merge_report.compare), "metrics": {"base", each part, "merged": {NAME: {"value", "n", "low", "high"}}}, None without
    data}; of `into_base` {"output", "recipe", "difference", "saved_difference", "dtype", "bytes"}; and "notices". InputError, before
    weights are loaded, for whatever does not go together.
    """
    sources = sources_of(adapters, model)
    folder = Path(output)
    refuse_output(folder)
    if into_base:
        refuse_with_base(
            weights=weights,
            method=method,
            rank=rank,
            density=density,
            seed=seed,
            data=data,
            metric=metrics,
            limit=limit,
        )
        return _into_base(sources, folder)
    chosen = settings(len(sources), weights, method, rank, density, seed)
    if data is None and (metrics is not None or limit is not None):
        raise InputError("--metric and --limit say how to measure on --data; give that too.")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1.")
    asked = None if data is None else _asked(metrics)
    loaded = None if data is None else _rows(data, asked or [], limit)
    recipe = {"base": next(iter(sources.values())).base, "parts": parts(sources), **chosen}
    return _weighted(sources, recipe, folder, loaded, asked, device)


def _asked(metrics: Sequence[str | dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the metrics to measure: perplexity, which the loss is taken from, and those asked for."""
    from tunesmith.evaluation.evaluator import check_metrics

    given = [{"name": m} if isinstance(m, str) else m for m in metrics or []]
    check_metrics(given, "merge")
    return [{"name": "perplexity"}, *(m for m in given if m["name"] != "perplexity")]


def _rows(data: Any, asked: list[dict[str, Any]], limit: int | None) -> "tuple[Loaded, int | None]":
    from tunesmith.data.sources import load
    from tunesmith.evaluation.evaluator import READS, check_rows, check_rules

    loaded = load(data, READS)
    check_rows(loaded)
    check_rules(loaded.records[:limit], asked)
    return loaded, limit


def _weighted(
    sources: dict[str, ModelSource],
    recipe: dict[str, Any],
    folder: Path,
    rows: "tuple[Loaded, int | None] | None",
    asked: list[dict[str, Any]] | None,
    device: str | None,
) -> dict[str, Any]:
    from tunesmith.model import loading, merging
    from tunesmith.model.merge_report import compare

    read = [merging.read(str(source.adapter)) for source in sources.values()]
    merging.check(read, recipe["method"], recipe.get("rank"))
    first = next(iter(sources.values()))
    tokenizer, notices = loading.load_tokenizer(first)
    given = {key: recipe[key] for key in ("rank", "density", "seed") if key in recipe}
    merged = merging.combine(read, recipe["weights"], recipe["method"], **given)
    report: dict[str, Any] = {
        "output": str(folder),
        "recipe": recipe,
        "rank": max(len(layer.a) for layer in merged.values()),
        "deltas": compare([part.layers for part in read], recipe["weights"], merged),
        "metrics": None,
    }
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        configs = [{**part.config, "base_model_name_or_path": _base(first, read[0])} for part in read]
        merging.write(merged, configs, beside)
        tokenizer.save_pretrained(beside)
        held = {source.quantize for source in sources.values()}
        how = first.quantize if len(held) == 1 else None
        if how is not None:  # it goes with the base its parts were trained on
            run.write_json(beside / loading.QUANTIZATION, how.describe())
        if len(held) > 1:
            named = ", ".join(sorted(h.name if h else "in full" for h in held))
            notices.append(
                f"the adapters were trained on bases held in other ways ({named}); the merged one is for the base in full"
            )
        if rows is not None:
            loaded, limit = rows
            everything = {n: replace(s, quantize=how) for n, s in sources.items()}
            everything["merged"] = replace(first, adapter=str(beside), quantize=how)
            report["metrics"], said = _measure(everything, tokenizer, loaded.records[:limit], asked or [], device)
            notices = [*notices, *loaded.notices, *said]
        run.write_json(beside / REPORT, report)
        _place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {**report, "notices": notices}


def _base(source: ModelSource, part: Any) -> str:
    """Return what the merged adapter names as its base: what its first part does, but where that was said otherwise."""
    named = part.config.get("base_model_name_or_path")
    return str(Path(source.base).resolve()) if Path(source.base).is_dir() else str(named or source.base)


def _measure(
    sources: dict[str, ModelSource],
    tokenizer: Any,
    records: Sequence[Any],
    asked: list[dict[str, Any]],
    device: str | None,
) -> tuple[Metrics, list[str]]:
    """Return the metrics of the base, of every part and of the merge on the same rows, rendered alike, and notices."""
    from tunesmith.evaluation.evaluator import evaluate_records
    from tunesmith.model import inference, many
    from tunesmith.model.policy import make_policy

    base = next(iter(sources.values())).base
    alone = inference.check(base, None, device)
    choices = {name: inference.Checked(source, tokenizer, alone.device, []) for name, source in sources.items()}
    several = many.Several({many.NONE: alone, **choices})
    model = several.load()
    policy, sentence = make_policy(model)
    found: Metrics = {}
    notices = [sentence]
    for name in several.choices:
        with several.using(model, name):
            measured = evaluate_records(policy, tokenizer, records, asked)
        metrics = measured.metrics
        loss = {k: v if k == "n" else math.log(v) for k, v in metrics["perplexity"].items()}
        found["base" if name == many.NONE else name] = {"validation_loss": loss, **metrics}
        notices += [n for n in measured.notices if n not in notices]
    return found, notices


def _into_base(sources: dict[str, ModelSource], folder: Path) -> dict[str, Any]:
    from tunesmith.evaluation.report_format import memory
    from tunesmith.model import into_base, loading

    if len(sources) > 1:
        raise InputError(
            f"--into-base takes one adapter, found {len(sources)}; merge them into one first, without --into-base."
        )
    (source,) = sources.values()
    into_base.refuse_unmergeable(str(source.adapter))
    into_base.refuse_quantized(source)
    tokenizer, notices = loading.load_tokenizer(source)
    if source.quantize is not None:
        how = source.quantize.name
        notices.append(
            f"the adapter was trained on the base in {how}; merged into the unquantised one it may answer a little otherwise"
        )
    found = into_base.merge_into_base(source, tokenizer, folder)
    report = {"output": str(folder), "recipe": {"base": source.base, "parts": parts(sources)}, **found}
    run.write_json(folder / REPORT, report)
    rounded = f"; rounding to {found['dtype']} moves them by {found['saved_difference']:.1e}"
    notices.append(
        f"merged, {memory(found['bytes'])}: in fp32 the logits are equal to {found['difference']:.1e}"
        + (rounded if found["dtype"] != "float32" else "")
    )
    return {**report, "notices": notices}


def _place(beside: Path, folder: Path) -> None:
    for path in (*beside.iterdir(), beside):
        disk.sync(path)
    if folder.is_dir():
        folder.rmdir()  # empty, as was checked
    disk.rename(beside, folder)


def show(report: dict[str, Any], console: "Console") -> None:
    """Print what came of it: the recipe in a line, and a table of base, parts and merge."""
    if "deltas" in report:
        _show_merged(report, console)
    console.print(f"result  {report['output']}", markup=False, highlight=False, soft_wrap=True)


def _show_merged(report: dict[str, Any], console: "Console") -> None:
    from tunesmith.evaluation.report_format import significant

    recipe, deltas, metrics = report["recipe"], report["deltas"], report["metrics"]
    rows = [["adapter", "weight", "size of change", "cosine to merged", "distance to merged"]]
    for part, row in zip(recipe["parts"], deltas["parts"], strict=True):
        sizes = (significant(row[key]) for key in ("norm", "cosine", "distance"))
        rows.append([part["name"], f"{row['weight']:g}", *sizes])
    _table([*rows, ["merged", "", significant(deltas["norm"]), "", ""]], console)
    total = deltas["weighted_sum_norm"]
    share = deltas["distance_to_weighted_sum"] / total if total else 0.0
    how = "the weighted sum of its parts" if share < 1e-5 else f"{share:.0%} of its size away from the weighted sum"
    console.print(f"{recipe['method']}, rank {report['rank']}: {how}", markup=False, highlight=False, soft_wrap=True)
    if metrics:
        _show_metrics(metrics, console)


def _show_metrics(metrics: Metrics, console: "Console") -> None:
    from tunesmith.evaluation.report_format import significant

    names = [m for m in metrics["merged"] if "/" not in m]
    rows = [["", *(name.replace("_", " ") for name in names)]]
    for name, found in metrics.items():
        cells = (tuple(significant(found[m][key]) for key in ("value", "low", "high")) for m in names)
        rows.append([name, *(f"{value} ({low}–{high})" for value, low, high in cells)])
    console.print()
    _table(rows, console)


def _table(rows: list[list[str]], console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if column == 0 else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
