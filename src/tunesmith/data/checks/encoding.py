"""Damage done by decoding: mojibake, lost characters, control and invisible characters, HTML entities, written-out line breaks."""

import re

from tunesmith.data.checks.found import Found, Item
from tunesmith.data.records import Text

# What the bytes 0x80-0xBF of UTF-8 look like when read as Windows-1252 (or Latin-1).
_FOLLOW = "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in range(0x80, 0xC0))
_F, _QUOTES = f"[{re.escape(_FOLLOW)}]", "“”‘’–—…"
_PLAIN = f"[{re.escape(''.join(c for c in _FOLLOW if c not in _QUOTES))}]"
_MOJIBAKE = re.compile(
    f"[ÂÃ](?:{_PLAIN}|[{_QUOTES}](?=[a-zA-ZÃÂ]))|â[€‚„†ˆ‰]{_F}|ï[»¿]{_F}|ðŸ{_F}{_F}|(?:[ÅÄÐÑÎÏ]{_F}){{2,}}"
)
_SUSPECT = re.compile(
    "[ÂÃâïðÅÄÐÑÎÏ\x80-\x9f\u00ad\u200b-\u200d\u2060\ufeff\u202d\u202e\ufffd]"
)  # what the kinds begin with
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_HIGH = re.compile("[\x80-\x84\x86-\x9f]")
_INVISIBLE = re.compile("[\u200b\u2060\u00ad\ufeff\u202d\u202e]|(?<=[a-zA-Z])[\u200c\u200d](?=[a-zA-Z])")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos|mdash|ndash|hellip|[lr][sd]quo|eacute|#\d{2,5}|#x[\da-fA-F]{2,5});")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]{0,80}>|```|\bHTML\b|\bXML\b|\bxml\b|\bhtml\b|&[a-z]+; ?(?:entity|is|stands)\b")
_TAG = re.compile(r"</(?:p|div|span|li|ul|ol|a|td|tr|table|b|i|em|strong|h[1-6])>|<br ?/?>", re.IGNORECASE)
_WEB = re.compile(r"\b(?:html|xml|css|web|tags?|code|markup|javascript|element)|```|<[a-z]", re.IGNORECASE)
_ESCAPED = re.compile(r"(?<![\"'`\\(])\\n(?=\\n|\\t|[A-Z\d*#-])(?!\\n[\"'`])")


def check(item: Item, found: Found) -> None:
    """Note damaged characters in what a record says, once per kind and record."""
    text = item.text
    plain = text.replace("\n", "").isprintable()  # quick to ask, and true of most
    if not plain and (hit := _CONTROL.search(text)):
        found.at(
            "control_character", item, f"the control character {_code(hit[0])} stands in the text.", text, *hit.span()
        )
    if not text.isascii() and _SUSPECT.search(text):
        _beyond_ascii(item, text, found)
    if "&" in text and (hit := _ENTITY.search(text)) and not _MARKUP.search(text):
        found.at("html_entity", item, f"the HTML entity {hit[0]} stands in plain text.", text, *hit.span())
    if "<" in text and (hit := _TAG.search(text)) and not (isinstance(item.record, Text) or _wanted(item)):
        found.at("html_tag", item, f'the HTML tag "{hit[0]}" stands in plain text.', text, *hit.span())
    if "\\n" in text and "\n" not in item.prompt and (hit := _ESCAPED.search(text)) and _no_code(text):
        message = "a line break is written as a backslash and an n."
        found.at("escaped_newline", item, message, text, *hit.span())


def _wanted(item: Item) -> bool:
    """Say whether tags are asked for, or are those of a program."""
    return bool(_WEB.search(item.prompt)) or "{" in item.text or "```" in item.text


def _beyond_ascii(item: Item, text: str, found: Found) -> None:
    if (start := text.find("\ufffd")) >= 0:
        message = "U+FFFD stands where a character could not be decoded."
        found.at("replacement_character", item, message, text, start, start + 1)
    if hit := _MOJIBAKE.search(text):
        message = f'"{hit[0]}" looks like UTF-8 read as Windows-1252{_meant(hit[0])}.'
        found.at("mojibake", item, message, text, *hit.span())
    elif hit := _CONTROL_HIGH.search(text):
        found.at(
            "control_character", item, f"the control character {_code(hit[0])} stands in the text.", text, *hit.span()
        )
    if hit := _INVISIBLE.search(text):
        found.at(
            "invisible_character",
            item,
            f"the invisible character {_code(hit[0])} stands in the text.",
            text,
            *hit.span(),
        )


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _meant(damaged: str) -> str:
    """Return ' (it was "é")' where the bytes read as Windows-1252 are UTF-8."""
    raw = b"".join(
        c.encode("cp1252") if c in _FOLLOW and ord(c) > 0xFF else c.encode("latin-1", "ignore") for c in damaged
    )
    try:
        return f' (it was "{raw.decode("utf-8")}")'
    except UnicodeDecodeError:
        return ""


def _no_code(text: str) -> bool:
    return "```" not in text and "\\\\" not in text and "print" not in text and "$" not in text and "'\\n'" not in text
