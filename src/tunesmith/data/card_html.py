"""card.html: the data card as one page that loads nothing: what went in, what each step did, what came out, and how to make it again."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tunesmith.evaluation.report_format import count, duration, memory, percent, significant

Facts = dict[str, Any]


def render(card: Facts, folder: str) -> str:
    """Return the page of a card whose set lies in `folder` (named in the commands at its end)."""
    style = "".join(
        resources.files(package).joinpath(name).read_text("utf-8")
        for package, name in (("tunesmith.evaluation", "report.css"), ("tunesmith.data", "card.css"))
    )
    sections = [
        ("What each step did", _steps(card["steps"], card["rows"]["records"])),
        ("How long the rows are", _lengths(card["lengths"])),
        ("Categories", _categories(card["categories"])),
        ("What the steps found", "".join(_findings(step) for step in card["steps"])),
        ("Rows that were kept, drawn by chance", _samples(card["samples"]["kept"])),
        ("Rows that were dropped", _dropped(card["samples"]["dropped"])),
        ("Repeats and what they repeat, the least alike first", _duplicates(card["duplicates"])),
        ("Rows that could not be read", _broken(card["broken"], card["rows"]["broken"])),
        ("Files written", _files(card)),
        ("Sources", _sources(card["sources"])),
        ("Notices", _list(card["notices"])),
        ("Make it again, or ask about a row", _recipe(card, folder)),
    ]
    body = "".join(f"<section><h2>{heading}</h2>{html}</section>" for heading, html in sections if html)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(folder)} · data card</title><style>{style}</style></head>'
        f"<body><main>{_header(card, folder)}{body}</main></body></html>\n"
    )


def _header(card: Facts, folder: str) -> str:
    rows, made = card["rows"], card["made"]
    sources = ", ".join(escape(Path(s["path"]).name) for s in card["sources"][:3]) + (
        " …" if len(card["sources"]) > 3 else ""
    )
    tiles = [
        ("rows read", rows["read"]), ("kept", rows["kept"]), ("dropped", rows["dropped"] + rows["broken"]),
        ("changed", rows["changed"]), ("added", rows["added"]),
    ]  # fmt: skip
    boxes = "".join(f"<div><dt>{name}</dt><dd>{count(number)}</dd></div>" for name, number in tiles)
    kinds = ", ".join(f"{count(n)} {escape(kind)}" for kind, n in card["kinds"].items())
    seconds = duration(sum(made["seconds"].values()))
    return (
        f'<header><p class="eyebrow">tunesmith data card · {escape(made["created"][:16].replace("T", " "))} UTC · {seconds}</p>'
        f"<h1>{escape(folder)}: {count(rows['kept'])} rows from {sources}</h1>"
        f'<p class="lead">{kinds}. All numbers of this page but the date and the seconds follow from the recipe at its end. '
        f'Personal data is masked wherever rows are shown.</p></header><dl class="tiles">{boxes}</dl>'
    )


def _steps(steps: Sequence[Facts], records: int) -> str:
    head = "".join(
        f'<th scope="col">{h}</th>' for h in ("step", "kept", "", "dropped", "changed", "added", "what it says")
    )
    lines, most = (
        [],
        max([records, 1, *(step["kept"] for step in steps)]),
    )  # steps that add rows may end with more than there were
    for step in steps:
        cells = "".join(
            f'<td class="number" data-name="{key}">{count(step[key]) if step[key] else ""}</td>'
            for key in ("dropped", "changed", "added")
        )
        summary = escape(str(step["facts"].get("summary") or ""))
        lines.append(
            f'<tr><th scope="row"><code>{escape(step["name"])}</code></th><td class="number" data-name="kept">{count(step["kept"])}</td>'
            f'<td class="kept">{_bar(step["kept"] / most, "after")}</td>{cells}<td>{summary}</td></tr>'
        )
    return f'<div class="wide"><table class="steps"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _bar(share: float, kind: str) -> str:
    none = ";min-width:0" if share == 0 else ""  # the least width is for what there is
    return f'<span class="bar {kind}" style="width:{100 * share:.2f}%{none}"></span>'


def _lengths(lengths: Facts) -> str:
    figures = []
    for unit, found in lengths.items():
        if not found:
            continue
        model = f" with {escape(found['model'])}" if "model" in found else ""
        before, after = found["before"], found["after"]
        pairs = _trimmed(found["edges"], before["counts"], after["counts"])
        said = [f"{name}: median {count(f['median'])}, 95% up to {count(f['p95'])}, longest {count(f['max'])}, {count(f['total'])} in all"
                for name, f in (("before", before), ("after", after)) if "median" in f]  # fmt: skip
        figures.append(
            f'<figure class="half"><figcaption><b>{unit}{model}</b> <span class="legend"><span class="key before">before</span>'
            f'<span class="key">after</span></span></figcaption>{_pairs(pairs)}<p class="small">{"<br>".join(said)}</p></figure>'
        )
    return f'<div class="figures">{"".join(figures)}</div>'


def _trimmed(edges: Sequence[float], *series: Sequence[float]) -> list[tuple[str, *tuple[float, ...]]]:
    """Return (the bin's name, its counts) of the bins between the first and the last that hold anything."""
    full = [i for i in range(len(edges) - 1) if any(counts[i] for counts in series)]
    whole = all(float(edge).is_integer() for edge in edges)
    span = range(full[0], full[-1] + 1) if full else range(0)

    def name(i: int) -> str:
        low, high = edges[i], edges[i + 1]
        if whole:
            return count(low) if high - low == 1 else f"{count(low)}–{count(high - 1)}"
        return f"{significant(low)} to {significant(high)}"

    return [(name(i), *(counts[i] for counts in series)) for i in span]


def _pairs(rows: Iterable[Sequence[Any]]) -> str:
    """Return a chart of horizontal bars: (name, before, after) or (name, count) each."""
    listed = list(rows)
    most = max((value for _, *values in listed for value in values), default=0) or 1
    lines = []
    for name, *values in listed:
        kinds = ("after",) if len(values) == 1 else ("before", "after")
        bars = "".join(_bar(value / most, kind) for value, kind in zip(values, kinds, strict=True))
        numbers = " → ".join(count(value) for value in values)
        said = escape(str(name))
        lines.append(
            f'<tr><th scope="row" title="{said}">{said}</th><td class="bars">{bars}</td><td class="number">{numbers}</td></tr>'
        )
    return f'<table class="chart-rows"><tbody>{"".join(lines)}</tbody></table>'


def _categories(found: Facts | None) -> str:
    if not found:
        return ""
    shown, rest = found["values"][:30], found["values"][30:]
    more = f'<p class="small">and {count(len(rest))} more values</p>' if rest else ""
    return f'<p class="note">By the field <code>{escape(found["field"])}</code>: rows before → after.</p>{_pairs(shown)}{more}'


def _findings(step: Facts) -> str:
    """Return what one step told: its reasons to drop, numbers, histograms, tables and options; nothing where it told nothing."""
    facts, html = step["facts"], ""
    if step["reasons"]:
        html += "<h4>why rows were dropped</h4>" + _pairs(step["reasons"])
    if facts.get("numbers"):
        cells = "".join(f"<dt>{escape(str(k))}</dt><dd>{_number(v)}</dd>" for k, v in facts["numbers"].items())
        html += f'<dl class="environment">{cells}</dl>'
    for chart in facts.get("histograms") or ():
        bars = _pairs(_trimmed(chart["edges"], chart["counts"]))
        html += f"<figure><figcaption><b>{escape(chart['title'])}</b></figcaption>{bars}</figure>"
    for table in facts.get("tables") or ():
        html += _table(table) if table["rows"] else ""
    if not html:
        return ""
    options = ", ".join(f"{k}: {_plain(v)}" for k, v in step["options"].items())
    note = f'<p class="small"><code>{escape(options)}</code></p>' if options else ""
    said = escape(str(facts.get("summary") or "details"))
    return f'<details class="step"><summary>{escape(step["name"])}: {said}</summary>{note}{html}</details>'


def _table(table: Facts, most: int = 50) -> str:
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in table["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{_number(c)}</td>" for c in row) + "</tr>" for row in table["rows"][:most])
    more = (
        f'<p class="small">and {count(len(table["rows"]) - most)} more, in card.json</p>'
        if len(table["rows"]) > most
        else ""
    )
    title = f"<h4>{escape(table['title'])}</h4>" if table["title"] else ""
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{more}'


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value).lower()
    if isinstance(value, int):
        return count(value)
    return significant(value) if isinstance(value, float) else escape(str(value))


def _plain(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
        .removesuffix("\n")
        .removesuffix("\n...")
    )


def _samples(samples: Sequence[Facts]) -> str:
    return "".join(
        f'<div class="sample"><p class="category">{_place(s)}</p><p class="text">{escape(s["text"])}</p></div>'
        for s in samples
    )


def _place(sample: Facts) -> str:
    return f"{escape(Path(sample['file']).name)}, row {count(sample['row'])}"


def _dropped(dropped: dict[str, Sequence[Facts]]) -> str:
    html = ""
    for step, samples in dropped.items():
        rows = "".join(
            f'<div class="sample"><p class="category">{_place(s)}: {escape(s["reason"])}</p><p class="text">{escape(s["text"])}</p></div>'
            for s in samples
        )
        html += f"<h3>by {escape(step)}</h3>{rows}"
    return html


def _duplicates(pairs: Sequence[Facts]) -> str:
    def side(one: Facts, what: str, kind: str) -> str:
        return (
            f'<div class="answer {kind}"><h4>{what}: {_place(one)}</h4><p class="text">{escape(one["text"])}</p></div>'
        )

    return "".join(
        f'<div class="sample"><p class="category">{escape(p["step"])}, similarity {significant(p["similarity"])}</p>'
        f'<div class="answers">{side(p["dropped"], "dropped", "before")}{side(p["kept"], "like", "after")}</div></div>'
        for p in pairs
    )


def _broken(rows: Sequence[Facts], total: int) -> str:
    if not rows:
        return ""
    more = f'<p class="small">and {count(total - len(rows))} more</p>' if total > len(rows) else ""
    return _list([f"{row['file']}, row {row['row']}: {row['reason']}" for row in rows]) + more


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _files(card: Facts) -> str:
    total = sum(file["rows"] for file in card["files"]) or 1
    rows = [
        [file["path"], file["rows"], percent(file["rows"] / total), memory(file["bytes"]), file["sha256"][:16] + "…"]
        for file in card["files"]
    ]
    return _table({"title": "", "columns": ["file", "rows", "share", "size", "SHA-256"], "rows": rows}).removeprefix(
        "<h4></h4>"
    )


def _sources(sources: Sequence[Facts]) -> str:
    rows = [
        [
            *(s.get(key) or "–" for key in ("path", "rows", "format", "why", "licence")),
            memory(s["bytes"]),
            s["sha256"][:16],
        ]
        for s in sources
    ]
    columns = ["file", "rows", "format", "because", "licence", "size", "SHA-256"]
    return _table({"title": "", "columns": columns, "rows": rows})


def _recipe(card: Facts, folder: str) -> str:
    recipe = yaml.safe_dump(card["recipe"], sort_keys=False, allow_unicode=True, width=110)
    row = f"{card['sources'][0]['path']}:12" if len(card["sources"]) > 1 else "12"
    commands = [
        ("what became of row 12", f"tunesmith data why {folder} {row}"),
        ("bring it back", f"tunesmith data why {folder} {row} --restore"),
        ("make the set again", f"tunesmith data prepare {folder}/recipe.yaml --output {folder}-again"),
        ("train on it", f"tunesmith train --data {folder}"),
    ]
    listed = "".join(f"<dt>{what}</dt><dd><code>{escape(command)}</code></dd>" for what, command in commands)
    return (
        f'<dl class="commands">{listed}</dl><details><summary>the recipe</summary><pre><code>{escape(recipe)}</code></pre></details>'
        f'<p class="small">SHA-256 of this card without date and seconds: <code>{escape(card["sha256"])}</code></p>'
    )
