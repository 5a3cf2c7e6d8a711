"""Rows as the model will see them, as one page that stands alone: no script, nothing fetched, readable without colour."""

from html import escape

from tunesmith.data.explain import Piece
from tunesmith.data.show import View, kind, name_in_batch, packing, reasons, title, visible

_STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --soft: #f4f6f8; --ink: #17212b; --quiet: #56636f; --line: #c3ccd4;
  --scored: #cdebd3; --end: #f7dd94; --special: #d6e4fb; --off: #efd9f3; --cut: #b42318; --bar: #9cc3e3; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12181f; --soft: #1a222b; --ink: #e4e9ee; --quiet: #9ba8b4; --line: #2e3945;
  --scored: #1f5132; --end: #6b5310; --special: #1f3a63; --off: #55305c; --cut: #ff9b8f; --bar: #2f5878; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 2.25rem 0 .5rem; padding-top: .75rem; border-top: 2px solid var(--ink); overflow-wrap: anywhere; }
p, ul { margin: .35rem 0; } .quiet { color: var(--quiet); font-size: .9rem; }
.note { border-left: 4px solid var(--cut); padding-left: .6rem; }
.tokens { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: .75rem; overflow-wrap: anywhere;
  white-space: pre-wrap; font: .9rem/1.9 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; unicode-bidi: isolate; }
.tokens span, .legend b { border-radius: 3px; box-shadow: inset 1px 0 0 var(--line); padding: .1em 0; font-weight: inherit; }
.scored { background: var(--scored); text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 3px; }
.end { background: var(--end); text-decoration: underline double; text-underline-offset: 3px; }
.special { background: var(--special); outline: 1px solid var(--line); outline-offset: -1px; } .template { color: var(--quiet); }
.off { background: var(--off); text-decoration: underline dotted; text-underline-offset: 3px; }
.cut { color: var(--cut); text-decoration: line-through; }
.limit { color: var(--cut); font-weight: 700; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; font-size: .9rem; }
.legend b { padding: .1em .3em; font-family: ui-monospace, Menlo, Consolas, monospace; }
.bar { display: flex; height: 2.1rem; margin: .3rem 0 .8rem; overflow: hidden;
  background: var(--soft); border: 1px solid var(--line); border-radius: 4px; }
.bar span { background: var(--bar); font-size: .75rem; line-height: 2rem; padding: 0 .3rem; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; border-right: 2px solid var(--ink); }
@media print { .tokens, .bar { break-inside: avoid; } }
"""
_LEGEND = (
    ("scored", "scored: the model learns to write it (underlined)"),
    ("end", "end of turn, scored (double underline)"),
    ("special", "special token, not scored (framed)"),
    ("context", "context: read, not learnt"),
    ("template", "what the template writes around"),
    ("off", "an answer that is not trained (dotted)"),
    ("cut", "cut off (struck through)"),
)


def page(made: View) -> str:
    """Return the view as one HTML page; whatever the rows hold is escaped, and what would steer the writing written out."""
    limit = f"cut at max_length {made.max_length:,}" if made.max_length else "never cut"
    notices = "".join(f'<p class="quiet">{_said(notice)}</p>' for notice in made.notices)
    legend = "".join(f'<li><b class="{how}">abc</b> {says}</li>' for how, says in _LEGEND)
    pieces = "".join(_piece(piece) for piece in made.pieces)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Rows as {_said(made.model)} sees them</title><style>{_STYLE}</style></head><body><main>\n"
        f"<h1>Rows as {_said(made.model)} sees them</h1>\n"
        f'<p class="quiet">Every token has its own box; a row is {limit}.</p>{notices}\n'
        f'<ul class="legend">{legend}</ul>\n{pieces}{_batches(made)}</main></body></html>\n'
    )


def _said(text: str) -> str:
    return escape(visible(text).encode("utf-8", "backslashreplace").decode())


def _piece(piece: Piece) -> str:
    tokens = []
    for i, token in enumerate(piece.tokens):
        if i == piece.kept and i:
            tokens.append('<b class="limit">✂ max_length</b>')
        how = kind(token, cut=i >= piece.kept)
        why = "cut off" if how == "cut" else token.reason
        tokens.append(f'<span class="{how}" title="{i + 1}: {_said(why)}">{_said(token.text)}</span>')
    note = f'<p class="note">{_said(piece.note)}</p>' if piece.note else ""
    counts = "".join(f'<li><b class="{how}">{count:,}</b> {_said(why)}</li>' for count, why, how in reasons(piece))
    return f'<h2>{_said(title(piece))}</h2>{note}\n<div class="tokens">{"".join(tokens)}</div>\n<ul class="legend">{counts}</ul>\n'


def _batches(made: View) -> str:
    if not made.batches:
        return ""
    out = [f'<h2>Micro-batches</h2><p class="quiet">{_said(packing())}</p>']
    share = 100 / max(batch.tokens for batch in made.batches)
    for number, batch in enumerate(made.batches, 1):
        parts, drawn = [], set()
        for i, shared in zip(batch.pieces, batch.shared, strict=True):
            own = made.pieces[i].kept - (shared if shared in drawn else 0)
            drawn.add(shared)
            name = _said(name_in_batch(made.pieces[i], shared))
            parts.append(f'<span style="flex:0 0 {own * share:.2f}%" title="{name}">{name}</span>')
        names = ", ".join(
            _said(name_in_batch(made.pieces[i], s)) for i, s in zip(batch.pieces, batch.shared, strict=True)
        )
        out.append(
            f'<p>Micro-batch {number}: {batch.tokens:,} tokens: {names}</p><div class="bar">{"".join(parts)}</div>\n'
        )
    return "".join(out)
