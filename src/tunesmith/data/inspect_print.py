"""An inspection for people: what each file is, its problems by kind with the remedy, lengths as bars, and what to do next."""

from collections.abc import Mapping
from typing import Any

from tunesmith.data.checks.found import visible
from tunesmith.data.checks.kinds import kind

_ORDER = {"error": 0, "warning": 1, "note": 2}
_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
_BARS = " ▁▂▃▄▅▆▇█"


def print_inspection(report: Mapping[str, Any], console: Any, most: int = 3) -> None:
    """Print an inspection on a rich console, of each kind of problem the first `most` rows."""
    for source in report["sources"]:
        _source(source, console, most)
    if report["tokens"] is not None:
        _tokens(report["tokens"], console)
    _next(report["sources"], console)


def _source(source: Mapping[str, Any], console: Any, most: int) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    counts = source["counts"]
    total = sum(counts.values())
    state = "[green]no problems[/]" if not total else f"[yellow]{total:,} problem{'s' * (total != 1)}[/]"
    name = f"{source['format']} ({escape(source['why'])})" if source["format"] else "format unknown"
    console.print(
        f"[bold]{escape(visible(source['path']))}[/]: {source['rows']:,} row{'s' * (source['rows'] != 1)}, {name}, {state}"
    )
    for title, value in _facts(source):
        console.print(Padding(f"[dim]{title}[/] {escape(visible(value))}", (0, 0, 0, 2)), highlight=False)
    for name in sorted(counts, key=lambda k: (_ORDER[kind(k).severity], -counts[k])):
        about = kind(name)
        color = _COLORS[about.severity]
        heading = f"[{color}]{about.severity:<7}[/] [bold]{name}[/] ({counts[name]:,}): {about.title}"
        console.print(Padding(heading, (0, 0, 0, 2)), highlight=False)
        lines = [_line(p) for p in source["problems"] if p["kind"] == name][:most]
        hidden = counts[name] - len(lines)
        more = [f"… and {hidden:,} more (--json or --csv lists them)"] if hidden else []
        for line in [*map(escape, lines), *(f"[dim]{m}[/]" for m in more), f"[dim]→ {escape(about.remedy)}[/]"]:
            console.print(Padding(line, (0, 0, 0, 10)), highlight=False)


def _line(problem: Mapping[str, Any]) -> str:
    place = f"row {problem['row']}" if problem["row"] else "file"
    field = f", {problem['field']}" if problem["field"] else ""
    sample = f'  "{problem["sample"]}"' if problem["sample"] else ""
    return visible(f"{place}{field}: {problem['message']}{sample}")


def _facts(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, words) of what is known of a file."""
    facts = []
    if source["records"]:
        kinds = ", ".join(f"{n:,} {k}{'s' * (n != 1)}" for k, n in source["kinds"].items())
        facts.append(("read as", kinds))
    if source["fields"]:
        facts.append(("fields", ", ".join(f"{f} ({_types(t)})" for f, t in list(source["fields"].items())[:12])))
    if source["languages"]:
        shares = [
            f"{name} {share:.0%}" if share >= 0.01 else f"{name} under 1%"
            for name, share in source["languages"].items()
        ]
        facts.append(("languages", ", ".join(shares[:6]) + (" …" if len(shares) > 6 else "")))
    for name, labels in source["labels"].items():
        total = sum(labels.values())
        shown = [f"{k} {n / total:.0%}" for k, n in list(labels.items())[:6]]
        facts.append((name, ", ".join(shown) + (f" … ({len(labels)} in all)" if len(labels) > 6 else "")))
    if (c := source["characters"]) is not None:
        bars = sparkline(c["histogram"]["counts"])
        what = "texts" if list(source["kinds"]) == ["text"] else "answers"
        facts.append(
            (what, f"{c['min']:,}–{c['max']:,} characters, median {c['median']:g}, 95% up to {c['p95']:,}  {bars}")
        )
    return facts


def _types(types: Mapping[str, int]) -> str:
    return " or ".join(f"{k} {n:,}" if len(types) > 1 else k for k, n in types.items())


def sparkline(counts: list[int]) -> str:
    """Return the counts as a line of bars, one character each; any count above none is seen."""
    top = max(counts, default=0)
    return "".join(_BARS[min(8, 1 + n * 8 // (top + 1))] if n else " " for n in counts)


def _tokens(tokens: Mapping[str, Any], console: Any) -> None:
    from rich.markup import escape

    if "error" in tokens:
        console.print(f"[red]{escape(tokens['error'])}[/]")
        return
    of = (
        f"a sample of {tokens['sampled']:,} of {tokens['rows']:,} rows"
        if tokens["sampled"] < tokens["rows"]
        else f"{tokens['rows']:,} rows"
    )
    spread = f"{tokens['min']:,}–{tokens['max']:,} long (median {tokens['median']:g}, 95% up to {tokens['p95']:,})"
    console.print(
        f"[bold]tokens with {escape(tokens['model'])}[/]: {tokens['examples']:,} examples of {of}, {spread}, "
        f"{tokens['total']:,} in all, {tokens['scored_share']:.0%} of them scored",
        highlight=False,
    )
    edges, counts = tokens["histogram"]["edges"], tokens["histogram"]["counts"]
    limit, top = tokens["limit"], max(counts)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "█" * max(1 if count else 0, round(40 * count / top))
        color = "yellow" if limit and low > limit else "green"
        console.print(f"  {low:>7,}–{high - 1:<7,} [{color}]{bar}[/] {count:,}", highlight=False)
    if limit:
        which = "max_length" if tokens["max_length"] else "the model's context"
        console.print(
            f"  {tokens['over']:,} ({tokens['over_share']:.1%}) are longer than {which} of {limit:,} tokens",
            highlight=False,
        )
    for notice in tokens["notices"]:
        console.print(f"[yellow]note:[/] {escape(notice)}")


def _next(sources: list[Mapping[str, Any]], console: Any) -> None:
    """Print the one command to go on with."""
    from rich.markup import escape

    kinds = [kind(name) for source in sources for name in source["counts"]]
    steps = sorted({k.step for k in kinds if k.step})
    if steps:
        paths = " ".join(dict.fromkeys(escape(s["source"]) for s in sources))
        command = f"tunesmith data prepare {paths} --output prepared"
        console.print(f"next: {command}  [dim](steps that help here: {', '.join(steps)})[/]", highlight=False)
    elif kinds:
        console.print("next: mend the rows named above, and inspect again", highlight=False)
