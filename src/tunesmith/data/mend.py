"""Mending damaged text, one function per damage. What is not damaged stays byte for byte, and so does code."""

import html
import re
import unicodedata
from collections.abc import Callable

from tunesmith.data.stats import FENCED

Mend = Callable[[str], str]

_INLINE = re.compile(r"(`+)(?!`)[^\n]*?[^`\n]\1(?!`)")
_BYTES = {chr(i): bytes([i]) for i in range(0x80, 0x100)}  # Latin-1, and Windows-1252 where it differs
_BYTES |= {
    bytes([i]).decode("cp1252"): bytes([i]) for i in range(0x80, 0xA0) if i not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
_LEAD = "".join(c for c, b in _BYTES.items() if 0xC2 <= b[0] <= 0xF4)
_TAIL = "".join(c for c, b in _BYTES.items() if 0x80 <= b[0] <= 0xBF)
_DOUBLE = re.compile(f"(?:[{_LEAD}][{re.escape(_TAIL)}]{{1,3}})+")
_CLOSING = "\xa0«»‘’‚“”„…–—€"  # these follow a letter in whole text too: "qualité »", "MENÜ“"
_LOST_QUOTE = re.compile(f"â€(?![{re.escape(_TAIL)}])|â€(?=[{_CLOSING[1:]}])")
_OF_ENCODINGS = re.compile(r"mojibake|encod|utf-?8|latin-?1|charset|unicode|windows-1252|cp1252", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_LATEX = re.compile(
    "\x07(?=lpha|pprox|ngle|st\\b|rc)|\x08(?=eta\\b|ar\\b|egin|inom|oldsymbol|ig|mod|oxed)|\x0b(?=ec\\b|ar|dots|ert)|\x0c(?=rac|orall|box)"
)
_INVISIBLE = re.compile("[\ufeff\u2060\u00ad]")
_WORD_BREAK = "\u200b"
_BREAKING_SCRIPTS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)  # Thai, Lao, Burmese, Khmer: they part words with it
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#39|#x27|#34|#160);")
_OF_HTML = re.compile(r"</?[a-z][a-z0-9]*[\s>/]|\bhtml\b|\bxml\b|\bentit(?:y|ies)\b", re.IGNORECASE)


def outside_code(text: str, mend: Mend) -> str:
    """Return the text mended, its fenced and inline code as it was."""
    if "`" not in text and "~~~" not in text:
        return mend(text)
    out, at = [], 0
    fences = [m.span() for m in FENCED.finditer(text)]
    spans = [m.span() for m in _INLINE.finditer(text) if not any(a < m.end() and m.start() < b for a, b in fences)]
    for start, end in sorted(fences + spans):
        out += [mend(text[at:start]), text[start:end]]
        at = end
    return "".join(out) + mend(text[at:])


def mojibake(text: str) -> str:
    """Return a text whose UTF-8 was once read as Latin-1 or Windows-1252, read rightly ("cafÃ©" -> "café"), twice where needed.

    Only a run of characters whose bytes are whole UTF-8 is changed, and only where it can hardly be anything else: runs of two
    letters or more, "Ã" and "Â" before a sign, quotes and dashes ("â€™"), emoji; anything in a text all of which is double. "â€" is
    a closing quote beside an opening "â€œ": Windows-1252 has no character for its third byte, and exports lose it. A text about
    encodings is left alone.
    """
    quoted = "â€œ" in text
    for _ in range(3):
        mended = _undouble(text)
        if mended == text:
            return text
        text = _LOST_QUOTE.sub("”", mended) if quoted else mended
    return text


def _undouble(text: str) -> str:
    if not _DOUBLE.search(text) or _OF_ENCODINGS.search(text):
        return text
    runs = [m[0] for m in _DOUBLE.finditer(text)]
    whole = len(runs) > 1 and not any(c > "\x7f" for c in _DOUBLE.sub("", text))
    return _DOUBLE.sub(lambda m: _decoded(m[0], whole) or m[0], text)


def _decoded(run: str, whole: bool) -> str | None:
    """Return what the run's bytes say in UTF-8, None where they say nothing or it may be meant as it stands."""
    try:
        said = b"".join(_BYTES[c] for c in run).decode("utf-8")
    except UnicodeDecodeError:
        return None
    double = _DOUBLE.fullmatch(said)  # it may be so twice, then what is said has control characters still
    if any(unicodedata.category(c) in ("Cn", "Co", "Cs") or c == "\ufffd" or (c < "\xa0" and not double) for c in said):
        return None
    plain = any(c not in _CLOSING for c in run[1:])
    sure = len(said) > 1 or run[0] == "Â" or run[:2] in ("â€", "ðŸ") or (plain and (run[0] == "Ã" or len(run) > 2))
    return said if sure or whole else None


def invisible(text: str) -> str:
    """Return the text without characters that show nothing: byte-order marks, zero-width and soft-hyphen ones.

    Joiners stay (Persian, Hindi and emoji need them), marks of direction beside letters written from the right, and
    zero-width spaces in scripts that part words with them.
    """
    text = _INVISIBLE.sub("", text)
    if _WORD_BREAK in text and not _BREAKING_SCRIPTS.search(text):
        text = text.replace(_WORD_BREAK, "")
    return text if _RIGHT_TO_LEFT.search(text) else _DIRECTION.sub("", text)


def control(text: str) -> str:
    r"""Return the text without control characters and terminal colours; a form feed or vertical tab becomes a line break.

    Before the rest of a LaTeX command they are its backslash and first letter, which a careless export read as an escape:
    "\frac" had become a form feed and "rac".
    """
    text = _LATEX.sub(lambda m: {"\x07": r"\a", "\x08": r"\b", "\x0b": r"\v", "\x0c": r"\f"}[m[0]], text)
    return _CONTROL.sub("", _ANSI.sub("", text).replace("\x0b", "\n").replace("\x0c", "\n"))


def line_ends(text: str) -> str:
    """Return the text with LF for CR LF, and for a CR alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def entities(text: str) -> str:
    """Return the text with &amp;, &lt;, &gt;, &quot;, &#39; and &nbsp; unescaped, unless it holds a tag or is about HTML or XML."""
    return text if _OF_HTML.search(text) else _ENTITY.sub(lambda m: html.unescape(m[0]).replace("\xa0", " "), text)


def trim(text: str) -> str:
    """Return the text without white space at its ends; an indented first line keeps its indent."""
    return re.sub(r"^(?:[^\S\n]*\n)+", "", text).rstrip() if text.strip() else ""


MENDINGS: dict[str, Mend] = {  # in this order: what one leaves the next may mend
    "mojibake": mojibake,
    "line_ends": line_ends,
    "control": control,
    "invisible": invisible,
    "entities": entities,
}
"""Every mending of running text, by the name of its option; they leave code alone. (`trim` is of a whole turn.)"""
