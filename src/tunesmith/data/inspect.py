"""`tunesmith data inspect`: what a data set is and everything that is wrong with it, row by row, without stopping."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data import detect, files
from tunesmith.data.formats._common import RowError, answers
from tunesmith.data.records import Chat, Origin, Record, Text
from tunesmith.data.sources import Source, parse
from tunesmith.errors import InputError

Problem = dict[str, Any]
_PROMPTS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "completion", "response", "answer")


def inspect(entries: Sequence[Mapping[str, Any] | str] | Mapping[str, Any] | str, model: str | None) -> dict[str, Any]:
    """Return {"sources": [{"path", "format", "rows", "problems": [{"row", "field", "kind", "message"}]}], "tokens"}.

    One entry per file. Rows count from 1 (JSONL: the line; `row` is null where the whole file is meant). `tokens` tells
    the lengths under `model`'s tokenizer and template: {"model", "examples", "min", "median", "p95", "max", "total",
    "scored", "scored_share", "notices"}, {"model", "error"} where nothing can be rendered, null without a model.
    InputError only where there is no such file or model.
    """
    sources = parse(entries)
    expanded = [files.expand(source.path, source.split)[0] for source in sources]
    reports, records = [], []
    for source, found in zip(sources, expanded, strict=True):
        for file in found:
            report, good = _inspect_file(file, source)
            reports.append(report)
            records += good
    return {"sources": reports, "tokens": None if model is None else token_lengths(records, model)}


def _inspect_file(file: Path | str, source: Source) -> tuple[dict[str, Any], list[Record]]:
    problems: list[Problem] = []
    records: list[Record] = []
    name, count = None, 0
    try:
        table = files.read(file, source.split)
        problems += [_problem(error) for error in table.broken]
        count = len(table.rows) + len(table.broken)
        rows = _renamed(table, source.columns or {}, problems)
        if rows:
            name = source.format or detect.detect(rows, table.file)[0]
        for number, row in rows:
            try:
                record = detect.convert(row, Origin(table.file, number), str(name), source.format is not None)
            except RowError as error:
                problems.append(_problem(error))
                continue
            records.append(record)
            problems += check_record(record, row)
    except RowError as error:  # of the whole file: no format, no UTF-8, empty
        problems.append(_problem(error))
    problems += _duplicates(records)
    problems.sort(key=lambda p: p["row"] or 0)
    return {"path": str(file), "format": name, "rows": count, "problems": problems}, records


def _renamed(table: files.Table, columns: dict[str, str], problems: list[Problem]) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, row in table.rows:
        try:
            rows.append((number, detect.rename(row, columns, Origin(table.file, number))))
        except RowError as error:
            problems.append(_problem(error))
    return rows


def _problem(error: RowError) -> Problem:
    return {"row": error.origin.row or None, "field": error.field, "kind": error.kind, "message": error.message}


def check_record(record: Record, row: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with one record's content: empty turns, the order of roles, tool answers to no call."""

    def problem(field: str, kind: str, message: str) -> Problem:
        return {"row": record.origin.row, "field": field, "kind": kind, "message": message}

    if isinstance(record, Text):
        return [] if record.text.strip() else [problem("text", "empty_text", "the text is empty.")]
    found = []
    roles = [m["role"] for m in record.messages]
    for i, message in enumerate(record.messages):
        where, turn = _field(record, row, i), f"turn {i + 1} ({roles[i]})"
        if roles[i] == "assistant" and not answers(message):
            found.append(problem(where, "empty_answer", f"{turn} is an empty answer; it is not trained on."))
        elif roles[i] == "user" and not str(message["content"]).strip():
            found.append(problem(where, "empty_prompt", f"{turn} is empty."))
        wrong = _wrong_order(roles[:i], roles[i])
        if roles[i] == "tool" and not (i and (roles[i - 1] == "tool" or record.messages[i - 1].get("tool_calls"))):
            found.append(problem(where, "orphan_tool", f"{turn} answers no tool call."))
        elif wrong:
            found.append(problem(where, "role_order", f"{turn} {wrong}."))
    last = _field(record, row, len(roles) - 1)
    if "assistant" not in roles:
        found.append(
            problem(last, "no_answer", "the conversation has no assistant turn, so there is nothing to train on.")
        )
    elif roles[-1] in ("user", "system"):
        found.append(problem(last, "ends_without_answer", f"the last turn is the {roles[-1]}'s."))
    return found


def _field(chat: Chat, row: dict[str, Any], turn: int) -> str:
    """Return the row's own field that turn `turn` came from."""
    listed = next((f for f in ("messages", "conversations", "conversation") if f in row), None)
    if listed:
        prepended = chat.messages[0]["role"] == "system" and bool(row.get("system"))
        return f"{listed}[{turn - prepended}]"
    if chat.messages[turn]["role"] == "system":
        return "system"
    if turn < len(chat.messages) - 2:
        return "history"
    names = _ANSWERS if turn == len(chat.messages) - 1 else _PROMPTS
    return next((f for f in names if f in row), names[0])


def _wrong_order(before: list[str], role: str) -> str | None:
    if role == "system" and before:
        return "is a system turn that is not the first"
    if role == "assistant" and not {"user", "tool"} & set(before):
        return "answers before anyone asked"
    if role in ("user", "assistant") and before[-1:] == [role]:
        return f"follows another {role} turn"
    return None


def _duplicates(records: list[Record]) -> list[Problem]:
    first: dict[str, Origin] = {}
    found = []
    for record in records:
        said = record.text if isinstance(record, Text) else json.dumps([record.messages, record.tools], sort_keys=True)
        earlier = first.setdefault(said, record.origin)
        if earlier is not record.origin:
            message = f"the row says exactly what row {earlier.row} says."
            found.append({"row": record.origin.row, "field": None, "kind": "duplicate", "message": message})
    return found


def token_lengths(records: list[Record], model: str) -> dict[str, Any]:
    """Return the lengths of the records' examples in tokens under `model`'s tokenizer and chat template."""
    from tunesmith.data.render import render
    from tunesmith.model.loading import load_tokenizer, resolve

    source = resolve(model)
    try:
        tokenizer, notices = load_tokenizer(source)
        examples, said = render(records, tokenizer)
    except InputError as error:  # the rows are still worth telling about
        return {"model": model, "error": str(error)}
    lengths = examples.lengths
    p95 = int(np.percentile(lengths, 95, method="higher"))
    return {
        "model": model,
        "examples": len(examples),
        "min": int(lengths.min()),
        "median": float(np.median(lengths)),
        "p95": p95,
        "max": int(lengths.max()),
        "total": int(lengths.sum()),
        "scored": int(examples.scored.sum()),
        "scored_share": float(examples.scored.mean()),
        "notices": notices + said,
    }


def print_inspection(report: dict[str, Any], console: Any, most: int = 20) -> None:
    """Print an inspection for people on a rich console: files, problems (the first `most` per file), lengths."""
    from rich.markup import escape
    from rich.table import Table

    for source in report["sources"]:
        problems = source["problems"]
        color = "green" if not problems else "yellow"
        state = "no problems" if not problems else f"{len(problems):,} problem{'s' * (len(problems) != 1)}"
        name = source["format"] or "format unknown"
        console.print(f"[bold]{escape(source['path'])}[/]: {source['rows']:,} rows, {name}, [{color}]{state}[/]")
        if problems:
            table = Table("row", "field", "kind", "what", box=None, padding=(0, 2))
            for p in problems[:most]:
                table.add_row(str(p["row"] or "-"), escape(p["field"] or "-"), p["kind"], escape(p["message"]))
            console.print(table)
            if len(problems) > most:
                console.print(f"… and {len(problems) - most:,} more (--json lists all)")
    tokens = report["tokens"]
    if tokens is None:
        return
    if "error" in tokens:
        console.print(f"[red]{escape(tokens['error'])}[/]")
        return
    console.print(
        f"tokens with {escape(tokens['model'])}: {tokens['examples']:,} examples, {tokens['min']}-{tokens['max']:,} long "
        f"(median {tokens['median']:g}, 95% up to {tokens['p95']:,}), {tokens['total']:,} in all, "
        f"{tokens['scored_share']:.0%} of them scored"
    )
    for notice in tokens["notices"]:
        console.print(f"[yellow]note:[/] {escape(notice)}")
