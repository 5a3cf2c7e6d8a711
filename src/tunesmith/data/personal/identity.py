"""Numbers that a state gives people: by check digit where there is one, else by range and by the word before them."""

import re

from tunesmith.data.personal.pattern import NOT_PERSONAL, Pattern, Span, before, digits

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_CONTEXT = {
    "ssn": re.compile(r"(?:\bssn|social security)\b[^\d\n]{0,25}$", re.IGNORECASE),
    "dni": re.compile(r"\b(?:dni|nie|nif|documento|identidad)\b[^\d\n]{0,25}$", re.IGNORECASE),
    "nhs": re.compile(r"\bnhs\b[^\d\n]{0,25}$", re.IGNORECASE),
    "nino": re.compile(r"(?:national insurance|\bnino\b|\bni (?:number|no)\b)[^\d\n]{0,25}$", re.IGNORECASE),
    "steuer_id": re.compile(r"(?:steuer|idnr|identifikationsnummer|\btax\b|\btin\b)[^\d\n]{0,30}$", re.IGNORECASE),
}


def dni_letter(number: int) -> str:
    """Return the letter of a Spanish DNI: its number by 23."""
    return _DNI[number % 23]


def nhs_check(number: str) -> int:
    """Return the check digit of an English NHS number's nine digits, weights 10 to 2, modulo 11; 10 means there is none."""
    return (11 - sum(int(d) * (10 - i) for i, d in enumerate(number[:9])) % 11) % 11


def nir_key(number: str) -> int:
    """Return the key of a French NIR's thirteen characters: 97 less the number by 97 (2A counts as 19, 2B as 18)."""
    return 97 - int(number.replace("2A", "19").replace("2B", "18")) % 97


def steuer_check(number: str) -> int:
    """Return the check digit of a German Steuer-ID's ten digits (ISO/IEC 7064, MOD 11, 10)."""
    product = 10
    for d in number[:10]:
        product = ((int(d) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10


def _ssn(match: re.Match[str]) -> Span | None:
    number = digits(match[0])
    if number[:3] in ("000", "666") or number[0] == "9" or number[3:5] == "00" or number[5:] == "0000":
        return None
    if match[0].count("-") == 2:
        return None if before(match, NOT_PERSONAL) else match.span()
    return match.span() if before(match, _CONTEXT["ssn"]) else None


def _dni(match: re.Match[str]) -> Span | None:
    text = match[0].replace("-", "").replace(" ", "").upper()
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    if dni_letter(int(number)) != text[-1]:
        return None
    plain = (
        text[0].isdigit() and text[-1] in "LFDUEHB" and len(match[0]) == 9
    )  # 12345678L is a number in many languages
    return match.span() if not (plain or match[0].islower()) or before(match, _CONTEXT["dni"]) else None


def _nhs(match: re.Match[str]) -> Span | None:
    number = digits(match[0])
    right = nhs_check(number) == int(number[9]) and not number.startswith("999")  # 999: the range for tests
    return match.span() if right and before(match, _CONTEXT["nhs"]) else None


def _nino(match: re.Match[str]) -> Span | None:
    text = match[0]
    if text[:2] in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ"):
        return None
    return match.span() if text.count(" ") >= 3 or before(match, _CONTEXT["nino"]) else None


def _nir(match: re.Match[str]) -> Span | None:
    text = match[0].replace(" ", "").replace("-", "")
    return match.span() if nir_key(text[:13]) == int(text[13:]) else None


def _steuer_id(match: re.Match[str]) -> Span | None:
    number = digits(match[0])
    right = len(number) == 11 and steuer_check(number) == int(number[10]) and len(set(number[:10])) < 10
    return match.span() if right and before(match, _CONTEXT["steuer_id"], 50) else None


def _document(match: re.Match[str]) -> Span | None:
    value = match["value"].upper()
    counted = digits(value)
    right = len(counted) >= 5 and not counted.startswith("00")
    return match.span("value") if right else None


def _cpf(match: re.Match[str]) -> Span | None:
    """A Brazilian CPF: two check digits, weights 10 to 2 and 11 to 2, modulo 11."""
    number = digits(match[0])
    for n in (9, 10):
        rest = sum(int(d) * (n + 1 - i) for i, d in enumerate(number[:n])) * 10 % 11 % 10
        if rest != int(number[n]):
            return None
    return match.span() if len(set(number)) > 1 else None


def _chinese(match: re.Match[str]) -> Span | None:
    """A Chinese identity number: a birth date inside, and its check character (ISO/IEC 7064, MOD 11-2; GB 11643)."""
    text = match[0].upper()
    rest = sum(int(d) * (1 << 17 - i) for i, d in enumerate(text[:17])) % 11
    return match.span() if "10X98765432"[rest] == text[17] else None


def _named(match: re.Match[str]) -> Span | None:
    """What stands behind the name of a national number has seven digits or more, or the letters and digits of a PAN or codice fiscale."""
    value = match["value"]
    right = 7 <= len(digits(value)) <= 15 or _LETTERED.fullmatch(value)
    return match.span("value") if right else None


_LETTERED = re.compile(r"[A-Z]{5}\d{4}[A-Z]|[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]")

PATTERNS = (
    Pattern("nir", re.compile(r"[1-478](?<![\w.-].)[ -]?\d{2}[ -]?(?:0[1-9]|1[0-2]|[2-9]\d)[ -]?(?:\d{2}|2[AB])[ "
                              r"-]?\d{3}"
                              r"[ -]?\d{3}[ -]?\d{2}(?![\w-])"), _nir, "number"),
    Pattern("steuer_id", re.compile(r"[1-9](?<![\w.-].)\d ?\d{3} ?\d{3} ?\d{3}(?![\w-])"), _steuer_id, "number"),
    Pattern("nhs", re.compile(r"\d(?<![\w.-].)\d{2}[ -]?\d{3}[ -]?\d{4}(?![\w-])"), _nhs, "number", ("nhs",)),
    Pattern("ssn", re.compile(r"\d(?<![\w.-].)\d{2}(?:-\d{2}-|[ .]?\d{2}[ .]?)\d{4}(?![\w-]|\.\d)"), _ssn, "number"),
    Pattern("dni", re.compile(r"[\dXYZxyz](?<![\w.-].)(?:(?<=\d)\d{7}|(?<=[XYZxyz])[ -]?\d{7})[ -]?[A-Za-z](?![\w-])"), _dni, "number"),
    Pattern("nino", re.compile(r"[A-CEGHJ-PR-TW-Z](?<!\w.)[A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"),
    _nino, "number"),
    Pattern("national_id", re.compile(r"\d(?<![\w.-].)\d{2}\.\d{3}\.\d{3}-\d{2}(?![\w-])"), _cpf, "number"),
    Pattern("national_id", re.compile(r"[1-9](?<![A-Za-z0-9_.-].)\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
                                      r"\d{3}[\dXx](?![A-Za-z0-9_])"), _chinese, "number"),
    Pattern(
        "national_id",
        re.compile(
            r"\b(?:[Aa]adhaa?r|BSN|[Bb]urgerservicenummer|PESEL|[Pp]ersonnummer|CPF|SIN|[Ss]ocial [Ii]nsurance|PAN|[Cc]odice "
            r"[Ff]iscale|AHV|IMEI|VIN|MRN|[Mm]edical [Rr]ecord)\b"
            r"(?: ?(?:[Nn]umber|[Nn]um|[Nn]o|[Nn]r|[Nn]ummer|[Cc]ard|#))?\.?(?: is| ist| è| é|:|#|=|\s){0,4}"
            r"(?P<value>[A-Z0-9](?:[ .-]?[A-Z0-9]){6,17})(?![\w-])"
        ),
        _named,
        "digit",
        ("aadhaar", "aadhar", "bsn", "burgerservicenummer", "pesel", "personnummer", "cpf", "sin", "insurance", "pan", "codice",
         "ahv", "imei", "vin", "mrn", "medical"),
    ),
    Pattern(
        "document",
        re.compile(
            r"\b(?:passport|reisepass|pasaporte|passeport|personalausweis|driver'?s? licen[cs]e|driving licen[cs]e|"
            r"f[üu]hrerschein|id card|identity card|carte d'identit[eé]|permis de conduire)\b"
            r"(?:[ -]?(?:number|num|no|nr|nummer|n[uú]mero|num[eé]ro|n°|nº|id|code))?\.?"
            r"(?: is| ist| es| est| was|:|#|=|\s){0,5}\(?(?P<value>[A-Z]{0,3}[ -]?\d[A-Z0-9-]{4,15})(?![\w-])",
            re.IGNORECASE,
        ),
        _document,
        words=("passport", "reisepass", "pasaporte", "passeport", "personalausweis", "license", "licence",
        "führerschein", "fuhrerschein", "card", "carte", "permis"),
    ),
)  # fmt: skip
