"""Money: payment cards (Luhn, issuers' ranges), IBANs (mod 97, lengths by country), account numbers, wallets."""

import hashlib
import re

from tunesmith.data.personal.pattern import NOT_PERSONAL, Pattern, Span, before, digits, in_a_row

# (first number of a range, last, lengths): ISO/IEC 7812 prefixes of the networks in use.
_ISSUERS = (
    ("4", "4", (16, 19)), ("51", "55", (16,)), ("2221", "2720", (16,)), ("34", "34", (15,)), ("37", "37", (15,)),
    ("6011", "6011", (16, 19)), ("644", "659", (16, 19)), ("3528", "3589", (16,)), ("36", "36", (14, 16)),
    ("38", "39", (14, 16)), ("300", "305", (14,)), ("62", "62", (16, 17, 18, 19)), ("6759", "6759", (16, 18, 19)),
    ("5018", "5018", (16,)), ("5020", "5020", (16,)), ("5038", "5038", (16,)), ("6304", "6304", (16,)),
)  # fmt: skip
_IBAN = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18,
    "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23,
    "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25,
    "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28,
    "TL": 23,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def luhn(number: str) -> bool:
    """Say whether the last digit is the check digit of Luhn's rule (ISO/IEC 7812-1, annex B)."""
    doubled = "0246813579"
    return sum(int(doubled[int(d)] if i % 2 else d) for i, d in enumerate(reversed(number))) % 10 == 0


def mod97(text: str) -> int:
    """Return an IBAN's remainder by 97, its first four characters moved to the end and letters counted from A = 10."""
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97


def base58check(text: str) -> bool:
    """Say whether a Bitcoin address carries its own double SHA-256 checksum."""
    value = 0
    for c in text:
        value = value * 58 + BASE58.index(c)
    if value >= 1 << 200:
        return False
    raw = value.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


def bech32(text: str) -> bool:
    """Say whether a segwit address has a valid checksum (BIP 173, or BIP 350's for newer ones)."""
    human, _, data = text.lower().rpartition("1")
    values = [ord(c) >> 5 for c in human] + [0] + [ord(c) & 31 for c in human] + [BECH32.index(c) for c in data]
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            state ^= generator if top >> i & 1 else 0
    return state in (1, 0x2BC830A3)


def _card(match: re.Match[str]) -> Span | None:
    number = digits(match[0])
    issued = any(a <= number[: len(a)] <= b and len(number) in lengths for a, b, lengths in _ISSUERS)
    return match.span() if issued and luhn(number) and not in_a_row(match) and not before(match, NOT_PERSONAL) else None


def _iban(match: re.Match[str]) -> Span | None:
    """The pattern runs on into what follows; the country's length says where the number ends."""
    length, text, end = _IBAN.get(match[0][:2], 0), "", match.start()
    for c in match[0]:
        if len(text) == length:
            break
        text, end = text + (c if c not in " -" else ""), end + 1
    after = match.string[end : end + 1]
    right = length and len(text) == length and not (after.isalnum() or after == "_") and mod97(text) == 1
    return (match.start(), end) if right else None


def _account(match: re.Match[str]) -> Span | None:
    return None if set(match["value"]) == {"0"} or match["value"].startswith("00") else match.span("value")


def _wallet(match: re.Match[str]) -> Span | None:
    text = match[0]
    if text[:2] == "0x":
        return None if text[2:22] == "0" * 20 or len(set(text[2:].lower())) < 8 else match.span()
    return match.span() if (bech32(text) if text[:2].lower() == "bc" else base58check(text)) else None


PATTERNS = (
    Pattern(
        "iban",
        re.compile(r"[A-Z](?<![\w-].)[A-Z]\d{2}(?:[ -]?[A-Z0-9]){11,30}"),
        _iban,
        "number",
    ),
    Pattern("card", re.compile(r"\d(?<![\w.+-].)\d{3}(?:([ -])(?:\d{4}\1\d{4}\1\d{2,4}(?:\1\d{3})?|\d{6}\1\d{4,5})|"
                               r"\d{10,15})(?![\w]|[-.]\d| \d{4}\b)"), _card, "number"),
    Pattern(
        "bank_account",
        re.compile(
            r"(?:\b(?:bank )?(?:account|acct|routing) ?(?:number|no|nr|#)|\baccount(?= \d{8,12}\b)|\bsort code|kontonummer|"
            r"kontonr|n[uú]mero de "
            r"cuenta|"
            r"num[eé]ro de compte)\.?(?: is| ist| es| est)?[\s:#=]{1,4}(?P<value>\d(?:[ -]?\d){5,16})(?![\w-])",
            re.IGNORECASE,
        ),
        _account,
        "number",
        ("account", "acct", "routing", "sort", "kontonummer", "kontonr", "cuenta", "compte"),
    ),
    Pattern("wallet", re.compile(r"[13](?<![\w/+=].)[1-9A-HJ-NP-Za-km-z]{25,34}(?![\w/+=])"), _wallet, "long"),
    Pattern("wallet", re.compile(r"(?<!\w)(?:bc1[02-9ac-hj-np-z]{11,71}|BC1[02-9AC-HJ-NP-Z]{11,71})(?!\w)"), _wallet,
    "long", needs=("bc1",)),
    Pattern("wallet", re.compile(r"(?<!\w)0x[0-9a-fA-F]{40}(?!\w)"), _wallet, "long", needs=("0x",)),
)  # fmt: skip
