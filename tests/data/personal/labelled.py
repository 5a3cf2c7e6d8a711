"""A labelled set: sentences, dialogues, code, logs and tables with personal data marked by kind, and what only looks like it.

The templates, and many of the values' forms, of the tuning part and of the held-out part are different ones: patterns are
written looking at the first, and measured on the second. All values are drawn; check digits are computed here, by
arithmetic of its own.
"""

import base64
import hashlib
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

from labelled_templates import HELD_OUT, HELD_OUT_NEAR, TUNING, TUNING_NEAR

Labelled = tuple[str, list[tuple[str, int, int]]]


def _words(text: str) -> list[str]:
    return text.split()


_FIRST = _words(
    "Anna Ben Clara David Elena Frank Grace Henry Irene Jonas Katrin Luis Marta Nils Olga Pedro Rosa Simon Tanja Victor"
)
_LAST = _words(
    "Abbott Brandt Castillo Dupont Eriksen Fischer Garrido Hartley Iversen Keller Lambert Moreau Novak Ortega Petersen Quinn Romero"
)
_AWAY = _words(
    "gmail.com outlook.com yahoo.co.uk web.de orange.fr correo.es acme-industries.com uni-hamburg.de mail.ru proton.me"
)
_ALNUM = string.ascii_letters + string.digits


def _d(r: random.Random, n: int) -> str:
    return "".join(r.choice(string.digits) for _ in range(n))


def _pick(r: random.Random, n: int, letters: str = _ALNUM) -> str:
    return "".join(r.choice(letters) for _ in range(n))


def _luhn(r: random.Random, start: str, n: int) -> str:
    body = start + _d(r, n - 1 - len(start))
    total = 0
    for i, c in enumerate(reversed(body)):
        x = int(c) * (2 - i % 2)
        total += x - 9 if x > 9 else x
    return body + str(-total % 10)


def _grouped(text: str, sizes: Iterable[int], mark: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return mark.join(parts)


def _email(r: random.Random, held: bool) -> str:
    first, last = r.choice(_FIRST).lower(), r.choice(_LAST).lower()
    forms = (
        [f"{first[0]}{last}{_d(r, 2)}", f"{last}-{first}"]
        if held
        else [f"{first}.{last}", f"{first}_{last}", f"{first}+news"]
    )
    return f"{r.choice(forms)}@{r.choice(_AWAY)}"


def _phone(r: random.Random, held: bool) -> str:
    area, mid = str(r.randint(201, 989)), str(r.randint(200, 999))
    held_forms = [
        f"+1 {area} {mid} {_d(r, 4)}", f"{area}.{mid}.{_d(r, 4)}",
        f"+33 6 {_d(r, 2)} {_d(r, 2)} {_d(r, 2)} {_d(r, 2)}", f"0{r.randint(161, 199)} {mid} {_d(r, 4)}",
        f"+34 6{_d(r, 2)} {_d(r, 3)} {_d(r, 3)}", f"+49 (0)30 {r.randint(1, 9)}{_d(r, 6)}",
        f"0{r.randint(151, 179)}-{r.randint(1, 9)}{_d(r, 6)}",
        f"+91 9{_d(r, 4)} {_d(r, 5)}", f"+61 4{_d(r, 2)} {_d(r, 3)} {_d(r, 3)}",
    ]  # fmt: skip
    forms = [
        f"({area}) {mid}-{_d(r, 4)}", f"{area}-{mid}-{_d(r, 4)}", f"+1-{area}-{mid}-{_d(r, 4)}",
        f"+44 20 7{_d(r, 3)} {_d(r, 4)}",
        f"+49 {r.randint(151, 179)} {r.randint(1, 9)}{_d(r, 6)}",
        f"0{r.randint(6, 7)} {_d(r, 2)} {_d(r, 2)} {_d(r, 2)} {_d(r, 2)}", f"07{_d(r, 3)} {_d(r, 6)}",
    ]  # fmt: skip
    return r.choice(held_forms if held else forms)


def _card(r: random.Random, held: bool) -> str:
    if held:
        return r.choice(
            [
                _grouped(_luhn(r, "37", 15), (4, 6, 5), " "),
                _luhn(r, "2" + str(r.randint(300, 699)), 16),
                _grouped(_luhn(r, "6011", 16), (4,) * 4, "-"),
            ]
        )
    return r.choice(
        [
            _grouped(_luhn(r, "4", 16), (4,) * 4, " "),
            _luhn(r, "5" + r.choice("12345"), 16),
            _grouped(_luhn(r, "4", 16), (4,) * 4, "-"),
        ]
    )


def _iban(r: random.Random, held: bool) -> str:
    body, country = r.choice(
        [("ABNA" + _d(r, 10), "NL"), (_d(r, 23), "FR"), (_d(r, 16), "AT")]
        if held
        else [(_d(r, 18), "DE"), ("NWBK" + _d(r, 14), "GB"), (_d(r, 20), "ES")]
    )
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    text = f"{country}{98 - number % 97:02d}{body}"
    return text if r.random() < 0.4 else " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def _ssn(r: random.Random, held: bool) -> str:
    return f"{r.choice([r.randint(1, 665), r.randint(667, 899)]):03d}-{r.randint(1, 99):02d}-{r.randint(1, 9999):04d}"


def _dni(r: random.Random, held: bool) -> str:
    number = r.randint(10_000_000, 99_999_999)
    if held:
        number = r.randint(0, 9_999_999)
        return f"X{number:07d}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"
    return f"{number}{r.choice(['', '-'])}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def _nhs(r: random.Random, held: bool) -> str:
    while True:
        body = str(r.randint(400_000_000, 799_999_999))
        check = 11 - sum(int(c) * w for c, w in zip(body, range(10, 1, -1), strict=True)) % 11
        if check != 10:
            text = body + str(check % 11)
            return text if held else _grouped(text, (3, 3, 4), " ")


def _nino(r: random.Random, held: bool) -> str:
    return f"{r.choice('ACEHJLMPRS')}{r.choice('ABCEHJLMPRS')} {_d(r, 2)} {_d(r, 2)} {_d(r, 2)} {r.choice('ABCD')}"


def _nir(r: random.Random, held: bool) -> str:
    body = f"{r.choice('12')}{_d(r, 2)}{r.randint(1, 12):02d}{r.randint(1, 95):02d}{r.randint(1, 990):03d}{r.randint(1, 999):03d}"
    key = f"{97 - int(body) % 97:02d}"
    return body + key if held else _grouped(body, (1, 2, 2, 2, 3, 3), " ") + " " + key


def _steuer_id(r: random.Random, held: bool) -> str:
    digits = r.sample(string.digits[1:], 9)
    digits.insert(r.randrange(1, 9), r.choice(digits))
    product = 10
    for c in digits:
        total = (int(c) + product) % 10
        product = 2 * (total if total else 10) % 11
    text = "".join(digits) + str((11 - product) % 10)
    return text if held else _grouped(text, (2, 3, 3, 3), " ")


def _document(r: random.Random, held: bool) -> str:
    return (
        f"{r.choice('CFGHJK')}{_d(r, 8)}"
        if held
        else r.choice([f"{_d(r, 1)}1{_d(r, 7)}", f"{_pick(r, 2, 'ABCDEF')}{r.randint(1, 9)}{_d(r, 6)}"])
    )


def _ipv4(r: random.Random, held: bool) -> str:
    return f"{r.choice([23, 34, 46, 52, 81, 85, 93, 104, 151, 178, 185, 212])}.{r.randint(32, 250)}.{r.randint(0, 255)}.{r.randint(1, 254)}"


def _ipv6(r: random.Random, held: bool) -> str:
    hexes = [f"{r.randint(1, 65535):x}" for _ in range(6)]
    return (
        f"2a{_pick(r, 2, '01')}:{':'.join(hexes)}:{r.randint(1, 65535):x}"
        if held
        else f"2a{_pick(r, 2, '01')}:{':'.join(hexes[:3])}::{hexes[3]}"
    )


def _mac(r: random.Random, held: bool) -> str:
    return ("-" if held else ":").join(f"{r.randint(16, 255):02{'X' if held else 'x'}}" for _ in range(6))


def _name(r: random.Random, held: bool) -> str:
    first, last = r.choice(_FIRST), r.choice(_LAST)
    return r.choice(
        [f"{first} {r.choice('ABCDEFG')}. {last}", f"{first} {last}-{r.choice(_LAST)}"] if held else [f"{first} {last}"]
    )


def _first(r: random.Random, held: bool) -> str:
    return r.choice(_FIRST)


def _address(r: random.Random, held: bool) -> str:
    tree, town = (
        r.choice(_words("Maple Oak Cedar Walnut Lincoln Jefferson Highland Willow")),
        r.choice(_words("Dayton Fresno Mobile Toledo")),
    )
    n = r.randint(2, 1890)
    if held:
        return r.choice(
            [
                f"{n} North {tree} Avenue, Apt {r.randint(1, 30)}B, {town}, OH 4{_d(r, 4)}",
                f"{n} {tree} Boulevard",
                f"{r.choice(['Garten', 'Linden', 'Schiller'])}weg {r.randint(1, 99)}, {r.randint(10000, 99000)} Ulm",
                f"{n} {tree} Rd",
            ]
        )
    return r.choice(
        [
            f"{n} {tree} Street, {town}, TX 7{_d(r, 4)}",
            f"{n} {tree} Ave",
            f"{n} {tree} Road",
            f"{r.choice(['Berliner', 'Bahnhof', 'Goethe'])}straße {r.randint(1, 99)}",
        ]
    )


def _birth_date(r: random.Random, held: bool) -> str:
    day, month, year = r.randint(1, 28), r.randint(1, 12), r.randint(1940, 2010)
    names = _words("January February March April May June July August September October November December")
    return r.choice(
        [f"{day} {names[month - 1]} {year}", f"{year}/{month:02d}/{day:02d}"]
        if held
        else [f"{month:02d}/{day:02d}/{year}", f"{names[month - 1]} {day}, {year}", f"{day:02d}.{month:02d}.{year}"]
    )


def _wallet(r: random.Random, held: bool) -> str:
    if held:
        return "0x" + _pick(r, 40, "0123456789abcdef")
    raw = b"\x00" + r.randbytes(20)
    number = int.from_bytes(raw + hashlib.sha256(hashlib.sha256(raw).digest()).digest()[:4], "big")
    text, alphabet = "", "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    while number:
        number, rest = divmod(number, 58)
        text = alphabet[rest] + text
    return "1" + text


def _jwt(r: random.Random, held: bool) -> str:
    parts = [{"alg": r.choice(["HS256", "RS256"]), "typ": "JWT"}, {"sub": _d(r, 8), "iat": r.randint(10**9, 2 * 10**9)}]
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return ".".join([*coded, _pick(r, 43)])


def _private_key(r: random.Random, held: bool) -> str:
    what = "OPENSSH " if held else r.choice(["RSA ", "", "EC "])
    lines = "\n".join(_pick(r, 64, _ALNUM + "+/") for _ in range(4))
    return f"-----BEGIN {what}PRIVATE KEY-----\n{lines}\n-----END {what}PRIVATE KEY-----"


def _password(r: random.Random, held: bool) -> str:
    return (
        _pick(r, r.randint(9, 14), _ALNUM + "!#%+") + _d(r, 1)
        if held
        else r.choice(["Sun", "Tiger", "blue", "Kaffee"]) + r.choice("!_-#") + _d(r, 4) + r.choice("aZ")
    )


def _api_key(r: random.Random, held: bool) -> str:
    return _pick(r, 31) + _d(r, 1) if held else _pick(r, 31, "0123456789abcdef") + "7"


def _simple(make: Callable[[random.Random], str]) -> Callable[[random.Random, bool], str]:
    return lambda r, held: make(r)


VALUES: dict[str, Callable[[random.Random, bool], str]] = {
    "email": _email, "phone": _phone, "card": _card, "iban": _iban, "ssn": _ssn, "dni": _dni, "nhs": _nhs,
    "nino": _nino, "nir": _nir,
    "steuer_id": _steuer_id, "document": _document, "ipv4": _ipv4, "ipv6": _ipv6, "mac": _mac, "name": _name,
    "first": _first,
    "address": _address, "birth_date": _birth_date, "wallet": _wallet, "jwt": _jwt, "private_key": _private_key,
    "password": _password,
    "api_key": _api_key,
    "bank_account": _simple(lambda r: str(r.randint(1, 9)) + _d(r, 9)),
    "login": _simple(lambda r: f"{r.choice(_FIRST).lower()}:{_pick(r, 10)}{_d(r, 1)}"),
    "aws_key": _simple(lambda r: "AKIA" + _pick(r, 16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")),
    "github_token": _simple(lambda r: "ghp_" + _pick(r, 36)),
    "gitlab_token": _simple(lambda r: "glpat-" + _pick(r, 20)),
    "slack_token": _simple(lambda r: f"xoxb-{_d(r, 12)}-{_d(r, 12)}-{_pick(r, 24)}"),
    "stripe_key": _simple(lambda r: "sk_live_" + _pick(r, 24)),
    "openai_key": _simple(lambda r: "sk-proj-" + _pick(r, 48)),
    "anthropic_key": _simple(lambda r: "sk-ant-api03-" + _pick(r, 60)),
    "huggingface_token": _simple(lambda r: "hf_" + _pick(r, 34)),
    "google_key": _simple(lambda r: "AIza" + _pick(r, 35)),
}  # fmt: skip

# What only looks like it; drawn into the templates as {~name}.
NEAR: dict[str, Callable[[random.Random], str]] = {
    "order": lambda r: f"{_d(r, 3)}-{_d(r, 7)}-{_d(r, 7)}",
    "isbn": lambda r: f"978-{r.randint(0, 9)}-{_d(r, 2)}-{_d(r, 6)}-{_d(r, 1)}",
    "version": lambda r: f"{r.randint(1, 20)}.{r.randint(0, 30)}.{r.randint(0, 9)}.{r.randint(0, 9)}",
    "sha1": lambda r: _pick(r, 40, "0123456789abcdef"),
    "sha256": lambda r: _pick(r, 64, "0123456789abcdef"), "short": lambda r: _pick(r, 7, "0123456789abcdef"),
    "uuid": lambda r: "-".join(_pick(r, n, "0123456789abcdef") for n in (8, 4, 4, 4, 12)),
    "price": lambda r: f"${r.randint(1, 999)},{_d(r, 3)}.{_d(r, 2)}",
    "date": lambda r: f"{r.randint(1990, 2025)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}",
    "time": lambda r: f"{r.randint(10, 23)}:{r.randint(10, 59)}:{r.randint(10, 59)}",
    "private_ip": lambda r: r.choice([f"192.168.{r.randint(0, 9)}.{r.randint(1, 99)}",
    f"10.0.{r.randint(0, 9)}.{r.randint(1, 99)}", "127.0.0.1", "0.0.0.0"]),
    "bad_card": lambda r: (lambda c: c[:-1] + str((int(c[-1]) + 5) % 10))(_luhn(r, "4", 16)),
    "stamp": lambda r: str(r.randint(1_500_000_000, 1_800_000_000)),
    "stamp_ms": lambda r: str(r.randint(1_500_000_000_000, 1_800_000_000_000)),
    "decimal": lambda r: f"{r.randint(0, 99)}.{_d(r, 12)}", "big": lambda r: str(r.randint(10**9, 10**15)),
    "bad_iban": lambda r: f"DE{r.randint(10, 99)} ABCD {_d(r, 4)} {_d(r, 4)}",
    "hex32": lambda r: f"0x{_pick(r, 8, '0123456789ABCDEF')}",
    "years": lambda r: f"{r.randint(1900, 1960)}-{r.randint(1961, 2020)}",
    "sum": lambda r: f"{_d(r, 3)} + {_d(r, 4)} = {_d(r, 4)}",
    "sku": lambda r: f"{_pick(r, 3, 'ABCXYZ')}-{_d(r, 4)}-{_d(r, 2)}",
    "population": lambda r: f"{r.randint(1, 9)},{_d(r, 3)},{_d(r, 3)}",
}  # fmt: skip

_SLOT = re.compile(r"\{(~?)(\w+)\}")


def filled(template: str, r: random.Random, held: bool) -> Labelled:
    """Return a template's text with its slots filled, and where the personal ones came to stand."""
    text, at, spans = "", 0, []
    for slot in _SLOT.finditer(template):
        if slot[2] not in (NEAR if slot[1] else VALUES):
            continue
        text += template[at : slot.start()]
        value = NEAR[slot[2]](r) if slot[1] else VALUES[slot[2]](r, held)
        if not slot[1]:
            spans.append(("name" if slot[2] == "first" else slot[2], len(text), len(text) + len(value)))
        text, at = text + value, slot.end()
    return text + template[at:], spans


def labelled(held_out: bool, rounds: int = 20, seed: int = 0) -> list[Labelled]:
    """Return the part's templates `rounds` times over, filled anew each time, near misses among them."""
    r = random.Random(f"{seed} {held_out}")
    templates = HELD_OUT + HELD_OUT_NEAR if held_out else TUNING + TUNING_NEAR
    return [filled(t, r, held_out) for _ in range(rounds) for t in templates]


def measure(find: Callable[[str], list[tuple[str, int, int]]], rows: list[Labelled]) -> dict[str, tuple[int, int, int]]:
    """Return by kind (right, missed, false): right is a finding of the same kind with exactly the same ends."""
    right, missed, wrong = Counter(), Counter(), Counter()
    for text, spans in rows:
        found = Counter(find(text))
        wanted = Counter(spans)
        right.update(k for k, _, _ in (found & wanted).elements())
        missed.update(k for k, _, _ in (wanted - found).elements())
        wrong.update(k for k, _, _ in (found - wanted).elements())
    return {k: (right[k], missed[k], wrong[k]) for k in sorted(right.keys() | missed.keys() | wrong.keys())}


def overall(counts: dict[str, tuple[int, int, int]]) -> tuple[float, float]:
    """Return (recall, precision) over all kinds."""
    right, missed, wrong = (sum(c[i] for c in counts.values()) for i in range(3))
    return right / (right + missed), right / (right + wrong)
