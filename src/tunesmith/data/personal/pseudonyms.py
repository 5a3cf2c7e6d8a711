"""What stands for a personal value: of the same form, the same for the same value, and nobody's.

A pseudonym is drawn by HMAC-SHA-256 (RFC 2104) from a key and the value without its punctuation, so one person's number
is the same pseudonym in every row, however it is written. None can be taken for real, and `find` finds none:

    e-mail     person-3f2a91c0@example.com (RFC 2606)      card       begins with 9999, which no issuer has; Luhn holds
    telephone  area or country 999, or leading zeros:      IBAN       country ZZ; mod 97 holds
               there are no such numbers                   SSN        999-0x-xxxx, which is never given
    IPv4, v6   documentation ranges (RFC 5737, 3849)       other ids  the check digit or letter is wrong, or a test range
    MAC        00:00:5E:00:53:xx (RFC 7042)                names      invented words, one for each word
    birth date the first month of 1900                     secrets    <AWS_KEY_3f2a91>
"""

import hmac
import re
from collections.abc import Callable

from tunesmith.data.personal import contact, finance, identity, person
from tunesmith.data.personal.pattern import digits

_SOUNDS = [part.split("|") for part in re.findall(r"\(\?:([^)]*)\)", person.INVENTED.pattern)]
_MONTHS = {"en": "January", "de": "Januar", "es": "enero", "fr": "janvier"}


Maker = Callable[[str, bytes], str]


def pseudonym(kind: str, value: str, key: bytes) -> str:
    """Return what stands for `value`; a kind that is unknown, and every secret, becomes <KIND_3f2a91>."""
    make = _MAKERS.get(kind)
    return f"<{kind.upper()}_{_number(kind, value, key):064x}"[:-58] + ">" if make is None else make(value, key)


def mask(kind: str) -> str:
    """Return the kind alone: <EMAIL>."""
    return f"<{kind.upper()}>"


def _number(kind: str, value: str, key: bytes) -> int:
    return int.from_bytes(hmac.digest(key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256"), "big")


def _digits(kind: str, value: str, key: bytes, n: int) -> str:
    """Return n digits drawn for a value; the last ones are the same for every n."""
    return f"{_number(kind, value, key) % 10**60:060d}"[-n:] if n else ""


def _filled(shape: str, characters: str) -> str:
    """Put characters in the place of a shape's letters and digits, in order; its punctuation stays."""
    rest = iter(characters)
    return "".join(next(rest) if c.isalnum() else c for c in shape)


def _email(value: str, key: bytes) -> str:
    return f"person-{_number('email', value.lower(), key) % 16**8:08x}@example.com"


def _phone(value: str, key: bytes) -> str:
    number = digits(value)
    n = len(number)
    drawn = _digits("phone", number[-9:], key, 15)
    international, dialled = value.lstrip("(").startswith("+"), number.startswith("00")
    if (n == 10 and number[0] >= "2" and not international) or (n == 11 and number[0] == "1"):
        lead = "1" * (n - 10) + "999"
    else:
        lead = "999" if international else "00999" if dialled else "000" if number[0] == "0" else "999"
    return _filled(value, lead + drawn[-(n - len(lead)) :])


def _card(value: str, key: bytes) -> str:
    number = digits(value)
    body = "9999" + _digits("card", number, key, len(number) - 5)
    return _filled(value, next(body + c for c in "0123456789" if finance.luhn(body + c)))


def _iban(value: str, key: bytes) -> str:
    compact = re.sub(r"\W", "", value)
    body = _digits("iban", compact, key, len(compact) - 4)
    return _filled(value, f"ZZ{98 - finance.mod97('ZZ00' + body):02d}{body}")


def _ssn(value: str, key: bytes) -> str:
    return _filled(value, "9990" + _digits("ssn", digits(value), key, 5))


def _failing(kind: str, fixed: str = "") -> Maker:
    """A number of the same form that no check digit proves: `fixed` in front, letters kept, all else drawn."""

    def make(value: str, key: bytes) -> str:
        plain = re.sub(r"\W", "", value).upper()
        drawn = _digits(kind, plain, key, len(plain))
        made = "".join(c if c.isalpha() else d for c, d in zip(plain, drawn, strict=True))
        return _filled(value, fixed + made[len(fixed) :])

    return make


def _dni(value: str, key: bytes) -> str:
    made = _failing("dni")(value, key)
    return made[:-1] + "U"  # a letter that no DNI ends in


def _nhs(value: str, key: bytes) -> str:
    return _filled(value, "999" + _digits("nhs", digits(value), key, 7))


def _steuer_id(value: str, key: bytes) -> str:
    body = "9" + _digits("steuer_id", digits(value), key, 9)
    return _filled(value, body + str((identity.steuer_check(body) + 1) % 10))


def _ipv4(value: str, key: bytes) -> str:
    drawn = _number("ipv4", value, key)
    return ("192.0.2.", "198.51.100.", "203.0.113.")[drawn % 3] + str(drawn // 3 % 254 + 1)


def _ipv6(value: str, key: bytes) -> str:
    drawn = f"{_number('ipv6', value.lower(), key):064x}"
    return f"2001:db8:{drawn[:4]}:{drawn[4:8]}::{drawn[8:12]}"


def _mac(value: str, key: bytes) -> str:
    last = _number("mac", value.lower().replace("-", ":"), key) % 256
    made = _filled(value, f"00005e0053{last:02x}")
    return made.upper() if value.isupper() else made


def _word(value: str, key: bytes) -> str:
    """Return an invented word for one word of a name, in its case: John is the same in "John Smith" and in "Dear John"."""
    drawn = _number("name", value.lower(), key)
    made = "".join(sounds[drawn >> 8 * i & 15] for i, sounds in enumerate(_SOUNDS))
    return made.upper() if value.isupper() and len(value) > 2 else made


def _name(value: str, key: bytes) -> str:
    return re.sub(r"[^\W\d_]+(?:['’-][^\W\d_]+)*\.?", lambda m: m[0] if m[0].islower() else _word(m[0], key), value)


def _address(value: str, key: bytes) -> str:
    """The house number and the street's own words become others; what kind of street it is, and where, goes too."""
    number = re.search(r"\d+", value)
    drawn = _number("address", value.lower(), key)
    house = str(drawn % 900 + 100)
    own = _word(value, key)
    way = _WAY.search(value)
    if way is None or way["english"]:
        return f"{house} {own} {way[0] if way else 'Street'}"
    if way["german"]:
        return f"{own}{way[0].lower()} {house}"
    return f"{house} {way[0]} {own}" if number and number.start() == 0 else f"{way[0]} {own} {house}"


_WAY = re.compile(
    r"\b(?P<english>Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace|"
    r"Square|Parkway|Pkwy|Highway|Hwy|"
    r"Close|Crescent|Gardens|Grove|Circle|Trail|Mews)\b|(?P<german>[Ss]tra(?:ß|ss)e|weg|platz|allee|gasse)\b|"
    r"\b(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai|Calle|Avenida|Plaza|Paseo)\b"
)


def _birth_date(value: str, key: bytes) -> str:
    """The day is drawn, the month is the first and the year 1900; numbers are written as they were."""
    day = _number("birth_date", value, key) % 12 + 1
    month = re.search(r"[^\W\d_]{3,}\.?", re.sub(r"\d(?:st|nd|rd|th|er)\b", "0", value))
    if month:
        word = month[0].rstrip(".").lower()
        spanish, german = (
            " de " in value or word == "enero",
            word in ("januar", "märz", "maerz", "mai", "juni", "juli", "oktober", "dezember"),
        )
        name = _MONTHS[
            "es"
            if spanish
            else "de"
            if german
            else "fr"
            if re.match(r"janvier|f[eé]v|mars|avr|juin|juil|ao[uû]|d[eé]cembre", word)
            else "en"
        ]
        return (
            f"{day} de {name} de 1900"
            if spanish
            else f"{day}. {name} 1900"
            if german
            else f"{name} {day}, 1900"
            if value[0].isalpha()
            else f"{day} {name} 1900"
        )
    fields = re.split(r"([./-] ?)", value)
    return "".join(
        f if i % 2 else "1900" if len(f) == 4 or (i == 4 and len(fields[0]) < 4) else f"{day:0{len(f)}d}"
        for i, f in enumerate(fields)
    )


def _wallet(value: str, key: bytes) -> str:
    """The first characters stay, so the kind of address does; the checksum is broken."""
    if value[:2] == "0x":
        return "0x" + "0" * 20 + f"{_number('wallet', value.lower(), key):064x}"[:20]
    lead, alphabet = (value[:3], finance.BECH32) if value[:2].lower() == "bc" else (value[:1], finance.BASE58)
    drawn, made = _number("wallet", value, key), ""
    for _ in range(len(value) - len(lead) - 4):
        drawn, rest = divmod(drawn, len(alphabet))
        made += alphabet[rest]
    made += alphabet[8] * 4
    return lead + (made.upper() if value.isupper() else made)


_MAKERS = {
    "email": _email, "phone": _phone, "card": _card, "iban": _iban, "ssn": _ssn, "dni": _dni, "nhs": _nhs,
    "steuer_id": _steuer_id, "nino": _failing("nino", "ZZ"), "nir": _failing("nir", "9"),
    "document": _failing("document", "00"),
    "bank_account": _failing("bank_account", "00"), "ipv4": _ipv4, "ipv6": _ipv6, "mac": _mac, "name": _name,
    "address": _address, "birth_date": _birth_date, "wallet": _wallet,
}  # fmt: skip
_OURS = re.compile(
    r"person-[0-9a-f]{8}@example\.com|<[A-Z0-9_]+>|(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d+|2001:db8:.*|"
    r"00[:-]00[:-]5e[:-]00[:-]53.*|"
    rf"ZZ\d.*|.*{person.INVENTED.pattern}.*",
    re.IGNORECASE,
)


def recognised(value: str) -> bool:
    """Say whether a value looks like one of ours: another finder than `find` must leave it alone."""
    plain = not any(c.isalpha() for c in value)
    return _OURS.fullmatch(value) is not None or (plain and contact.fictitious(digits(value)))
