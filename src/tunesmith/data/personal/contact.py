"""How people are reached: e-mail addresses and telephone numbers."""

import re
from itertools import pairwise

from tunesmith.data import lexicon
from tunesmith.data.personal.pattern import NOT_PERSONAL, Pattern, Span, before, digits, in_a_row

_NO_DOMAIN = lexicon.words("personal", "endings")
_ANYBODY = lexicon.words("personal", "anybody")
_RESERVED = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|domain|email|company|yourdomain|mydomain)(?:\.(?:com|org|net))?$"
)
_UNSPACED = re.compile(r"[^@]*[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff](?=[A-Za-z0-9])")
_IN_ADDRESS = re.compile(r"://[^\s/]*$")  # user:password@host
_OURS = re.compile(r"person-[0-9a-f]{8}@example\.com", re.IGNORECASE)

# Country calling codes (ITU-T E.164), of one to three digits.
_CODES = lexicon.words("personal", "codes")
_CALLED = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell(?:phone)?|fax|whats ?app|sms|call(?: me| us| him| her| them)?|text(?: me| "
    r"us)?|dial|ring(?: me)?|"
    r"hotline|reach(?: me| us| him| her)?|telefon|handy|rufnummer|mobil|m[oó]vil|tel[eé]fono|ll[aá]ma(?:me|r|nos)?|"
    r"t[eé]l[eé]phone|t[eé]l|portable|"
    r"appele[rz](?:-moi)?|contact(?: number| no)?)\b"
    r"(?: ?(?:number|numbers|no|nr|#|num|nummer|n[uú]mero|num[eé]ro|is|ist|es|est|was|at|on|under|unter|al|au|to|me|"
    r"line|via|it's))*[\s:.#=(\"'*_+]{0,6}$",
    re.IGNORECASE,
)  # fmt: skip


def fictitious(number: str) -> bool:
    """Say whether a telephone number's digits can be nobody's: no such area, country or leading zeros (our pseudonyms)."""
    return number.startswith(("000", "999", "1999", "00999", "001999"))


def _email(match: re.Match[str]) -> Span | None:
    local, _, domain = match[0].lower().rpartition("@")
    ending = domain.rpartition(".")[2]
    if ending in _NO_DOMAIN or not (ending.isalpha() or ending.startswith("xn--")) or ".." in match[0]:
        return None
    anybody = local in _ANYBODY or local.startswith("your")
    if local == "git" or (anybody and _RESERVED.search(domain)) or _OURS.fullmatch(match[0]):
        return None
    if _IN_ADDRESS.search(match.string, max(0, match.start() - 80), match.start()):
        return None
    if match.string[match.end() : match.end() + 1] == "@" or match.string[match.start() - 1 : match.start()] == "/":
        return None  # a path, or one of several at signs
    unspaced = _UNSPACED.match(match[0])  # the sentence before it, in a script that writes no spaces
    return (unspaced.end() + match.start() if unspaced else match.start()), match.end()


def _international(match: re.Match[str]) -> Span | None:
    number = digits(match[0])
    plus = match[0].startswith("+")
    number = number if plus else number[2:]
    if not any(number[:n] in _CODES for n in (1, 2, 3)) or not 8 <= len(number) <= 15 or fictitious(number):
        return None
    if number[0] == "1" and (len(number) != 11 or number[1] in "01"):
        return None
    separated = re.search(r"\d[ ./()-]", match[0])
    if not plus and not separated and not before(match, _CALLED):
        return None
    if (len(number) > 13 and not separated) or re.fullmatch(r"\+\d\.\d+", match[0]) or before(match, NOT_PERSONAL):
        return None
    return match.span()


def _north_american(match: re.Match[str]) -> Span | None:
    """Spaces alone, or nothing, between the groups are seen in lists of numbers too: there the word before must say so."""
    number = digits(match[0])
    sure = "(" in match[0] or match[0].count("-") >= 2 or match[0].count(".") >= 2
    if fictitious(number) or in_a_row(match) or before(match, NOT_PERSONAL) or not (sure or before(match, _CALLED)):
        return None
    return match.span()


_PAIRS = re.compile(r"0\d([ .-])\d\d(?:\1\d\d){3}")


def _national(match: re.Match[str]) -> Span | None:
    """A number with a leading zero, as most countries write their own (UK, DE, FR, IT, AU, ...)."""
    text = match[0]
    number = digits(text)
    if (
        not 9 <= len(number) <= 11
        or fictitious(number)
        or number[:2] == "00"
        or in_a_row(match)
        or before(match, NOT_PERSONAL)
    ):
        return None
    if before(match, _CALLED):
        return match.span()
    groups = re.findall(r"\d+", text)
    dated = re.match(r"\(?0\d[/.-]\d{1,2}[/. -]\d", text) and not _PAIRS.fullmatch(text)
    if len(groups) == 1 or dated:
        return None  # a run of digits, a date
    if _PAIRS.fullmatch(text):
        steps = {int(b) - int(a) for a, b in pairwise(groups)}
        return None if len(steps) == 1 or "-" in text else match.span()
    if min(len(g) for g in groups) < 2 or len(groups) > 4 or (len(groups[-1]) < 3 and len(groups[0]) < 3):
        return None
    return match.span()


def _called(match: re.Match[str]) -> Span | None:
    """Any other shape after a word like "phone:"; not the years 2019-2024, and not what is only counted."""
    number = digits(match[0])
    if (
        not 7 <= len(number) <= 15
        or fictitious(number)
        or re.fullmatch(r"(?:19|20)\d\d ?[-–/] ?(?:19|20)\d\d", match[0])
    ):
        return None
    if re.fullmatch(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}|\d+[.]\d+|\d{1,3}(?:[.]\d{3})+", match[0]):
        return None  # a date, a decimal, a large number
    return match.span() if before(match, _CALLED) else None


_OBSCURED = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64} ?[\[({] ?at[\])}] ?[\w-]{1,63}(?: ?(?:[\[({] ?(?:dot|punkt|punto) ?[\])}]|\.) "
    r"?[\w-]{2,63}){1,3}(?!\w)",
    re.IGNORECASE,
)
PATTERNS = (
    Pattern("email", re.compile(r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,5}(?:xn--[\w-]+|[^\W\d_]{2,24})"
                                r"(?![\w-])"), _email, needs=("@",)),
    Pattern("email", re.compile(r"(?<![\w.+-])[\w.+-]{2,64} at [\w-]{2,63} dot (?:com|org|net|edu|gov|io|me|co|de|fr|es|uk|it|nl|ch|at)"
                                r"\b", re.IGNORECASE), needs=(" dot ",)),
    Pattern("email", _OBSCURED, needs=("at]", "at)", "at}")),
    Pattern("phone", re.compile(r"[+(0](?<![\w.+/-].)(?:(?<=\+)|(?<=\()\+|(?<=0)(?<!\d 0)0)[1-9]\d{0,2}\)?(?:[ ./()"
                                r"-]{0,2}\d){6,13}(?![\w]|-\d|\.\d)"), _international, "number"),
    Pattern(
        "phone",
        re.compile(r"[(\d](?<![\w.+/(-].)(?:(?<=1)[ .-]?\(?[2-9]\d\d\)? ?[.-]?|(?<=\()[2-9]\d\d\) ?-?|(?<=[2-9])"
                   r"\d\d[ .-]?)\d{3}[ .-]?\d{4}(?![\w/]|[.-]\d| ?[-+*/=] ?\d)"),
        _north_american,
        "number",
    ),
    Pattern("phone", re.compile(r"[(0](?<![\w.,+/():$-].)(?:(?<=0)|(?<=\()0)\d{1,5}\)?(?:[ ./-]{0,2}\d)"
                                r"{6,9}(?![\w/:]|[.,-]\d| \d)"), _national, "number"),
    Pattern(
        "phone",
        re.compile(r"\d(?<![\w.,+$-].)(?:[ ./()-]{0,2}\d){6,14}(?![\w%/]|[.,-]\d)"),
        _called,
        "number",
        ("phone", "telephone", "tel", "mobile", "mobil", "cell", "cellphone", "fax", "whatsapp", "whats", "sms",
        "call", "text", "dial", "ring",
         "reach", "hotline", "handy", "rufnummer", "telefon", "móvil", "movil", "teléfono", "telefono", "llama",
         "llámame", "llamar", "llámanos",
         "téléphone", "tél", "portable", "appelez", "appeler", "contact"),
    ),
)  # fmt: skip
