"""personal_data: what identifies people, and secrets, replaced by consistent pseudonyms, wherever a row has text."""

import hmac
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

from tunesmith.data import lexicon, personal
from tunesmith.data.content import rewritten
from tunesmith.data.personal import Finding
from tunesmith.data.personal.pseudonyms import mask, pseudonym, recognised
from tunesmith.data.records import Record, Text
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError, did_you_mean

ORDER = 60
DEFAULT = True
Look = Callable[[str], list[Finding]]
_PLACED = re.compile(r"(?:\.arguments|^extra)\b.*?\.?([A-Za-z_][\w -]*)(?:\[\d+\])*$")
_AGAIN = 200  # values of one row that are looked for again: beyond, a row is a list of people, and the search would cost their number
_NAME_WORD = re.compile(r"[^\W\d_]{3,}(?:['’-][^\W\d_]+)*")
_ORDINARY = lexicon.words("personal", "ordinary")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|_")
# presidio's names for what we have names for; its other entities (places, dates, ...) identify nobody alone.
_PRESIDIO = {
    "PERSON": "name", "EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "CREDIT_CARD": "card", "IBAN_CODE": "iban",
    "CRYPTO": "wallet",
    "US_SSN": "ssn", "US_PASSPORT": "document", "US_DRIVER_LICENSE": "document",
    "UK_PASSPORT": "document", "US_BANK_NUMBER": "bank_account",
    "UK_NHS": "nhs",
    "UK_NINO": "nino", "ES_NIF": "dni", "ES_NIE": "dni", "MAC_ADDRESS": "mac",
}  # fmt: skip


def apply(
    rows: Rows,
    *,
    mode: Literal["pseudonym", "mask", "drop", "report"] = "pseudonym",
    kinds: list[str] | None = None,
    allow: list[str] | None = None,
    engine: Literal["patterns", "presidio"] = "patterns",
    key: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Replace personal data in every row by pseudonyms or masks, or drop the rows that hold any, or only count.

    `kinds` (default: all of `personal.KINDS`), `allow` values and mail domains that stay, `engine: presidio` adds what
    presidio's English model finds (names without context). The same value has the same pseudonym everywhere. Pseudonyms are
    drawn with the seed, so that the recipe makes the same bytes again; who knows the seed can test guesses of a value
    against its pseudonym, so for data that leaves the house name in `key` an environment variable that holds a secret
    of your own: its value is stored nowhere. The facts hold counts, never a value.
    """
    look = _finder(tuple(kinds) if kinds else personal.KINDS, frozenset(a.lower() for a in allow or ()), engine)
    drawn_by = os.environ[key].encode() if key else f"tunesmith personal_data {seed}".encode()
    found, held, distinct = Counter[str](), Counter[str](), set[tuple[str, int]]()
    touched = 0
    for id_, record in rows:
        count = Counter[str]()
        known: dict[str, str] = {}

        def change(place: str, text: str, count: Counter[str] = count, known: dict[str, str] = known) -> str:
            spans = findings(place, text, look)
            for kind, start, end in spans:
                count[kind] += 1
                known[text[start:end]] = kind
                distinct.add((kind, hash(text[start:end].lower())))
            return (
                replaced(text, spans, None if mode == "mask" else drawn_by) if mode in ("pseudonym", "mask") else text
            )

        new = covered(record, change)
        if not count:
            continue
        if mode in ("pseudonym", "mask"):
            new = covered(new, everywhere(known, None if mode == "mask" else drawn_by, count))
        touched += 1
        found += count
        held.update(count.keys())
        said = ", ".join(f"{n} {kind}" for kind, n in sorted(count.items()))
        if mode == "drop":
            rows.drop(id_, f"holds personal data ({said})", **count)
        elif new is not record:
            rows.change(id_, new, f"personal data replaced ({said})", **count)
    return _facts(mode, found, held, Counter(kind for kind, _ in distinct), touched)


def secret(options: dict[str, Any]) -> str | None:
    """Return a mark of the value of `key`'s variable, for the recipe: another value makes other bytes. It does not give the value away."""
    value = os.environ.get(options.get("key") or "")
    return hmac.digest(value.encode(), b"recipe", "sha256").hex()[:8] if value else None


def check(
    *,
    mode: str = "pseudonym",
    kinds: list[str] | None = None,
    allow: list[str] | None = None,
    engine: str = "patterns",
    key: str | None = None,
    seed: int = 0,
) -> None:
    """InputError for an unknown kind, an environment variable that is not set, a package that is not installed."""
    for kind in kinds or ():
        if kind not in personal.KINDS:
            raise InputError(
                f'prepare: personal_data.kinds: there is no kind "{kind}".{did_you_mean(kind, personal.KINDS)}'
            )
    if key and not os.environ.get(key):
        raise InputError(
            f"prepare: personal_data.key names the environment variable {key}, which is not set; set it to a secret "
            f"of your own."
        )
    if engine == "presidio":
        _presidio()


def findings(place: str, text: str, look: Look = personal.find) -> list[Finding]:
    """Return what is found in the text at a place; the name of a tool's argument or an extra field counts as context."""
    found = look(text)
    named = _PLACED.search(place)
    if named and not found and 3 < len(text) < 200:
        said = _CAMEL.sub(" ", named[1]) + ": "
        n = len(said)
        found = [(kind, start - n, end - n) for kind, start, end in look(said + text) if start >= n]
    return found


def everywhere(known: dict[str, str], key: bytes | None, count: Counter[str]) -> Callable[[str, str], str]:
    """Return a change that replaces the values known of a row wherever else they stand in it, and counts them.

    A name is found where the words around it are clear, "My name is Ann Lee", and is the same person in "Ann, sit down": left
    there it would tell who was meant, and the row would contradict itself. A name's words that are ordinary words stay ("Will").
    """
    kinds = {value: kind for value, kind in known.items() if kind == "name" or len(value) >= 6}
    for value in [v for v, kind in kinds.items() if kind == "name"]:
        for word in _NAME_WORD.findall(value):
            if word.lower() not in _ORDINARY:
                kinds.setdefault(word, "name")
            elif word == value:
                del kinds[value]
    kinds = dict(islice(kinds.items(), _AGAIN))
    if not kinds:
        return lambda place, text: text
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(kinds, key=len, reverse=True)))})(?!\w)")

    def change(place: str, text: str) -> str:
        found = [(kinds[m[0]], *m.span()) for m in pattern.finditer(text)]
        count.update(kind for kind, _, _ in found)
        return replaced(text, found, key) if found else text

    return change


def replaced(text: str, found: list[Finding], key: bytes | None) -> str:
    """Return the text with each finding's pseudonym in its place, or its mask where there is no key; all else as it was."""
    parts, at = [], 0
    for kind, start, end in found:
        parts += [text[at:start], mask(kind) if key is None else pseudonym(kind, text[start:end], key)]
        at = end
    return "".join([*parts, text[at:]])


def covered(record: Record, change: Callable[[str, str], str]) -> Record:
    """Return the record with every text changed, those of its tools and extra fields too; itself where all stay."""
    new = rewritten(record, change)
    if new.extra:
        extra = _walked(new.extra, "extra", change)
        new = new if extra == new.extra else replace(new, extra=extra)
    if not isinstance(new, Text) and new.tools:
        tools = _walked(new.tools, "tools", change)
        new = new if tools == new.tools else replace(new, tools=tools)
    return new


def _walked(value: Any, place: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(place, value)
    if isinstance(value, dict):
        return {k: _walked(v, f"{place}.{k}", change) for k, v in value.items()}
    if isinstance(value, list):
        return [_walked(v, f"{place}[{i}]", change) for i, v in enumerate(value)]
    if type(value) is int and value >= 10**6:  # a telephone or card number kept as a number: it stays one where it can
        said = change(place, str(value))
        return value if said == str(value) else int(said) if re.fullmatch(r"[1-9]\d*", said) else said
    return value


def _finder(kinds: tuple[str, ...], allow: frozenset[str], engine: str) -> Look:
    analyse = _presidio() if engine == "presidio" else None

    def look(text: str) -> list[Finding]:
        found = personal.find(text, kinds)
        if analyse is not None:
            found = _merged(found, [f for f in analyse(text) if f[0] in kinds and not recognised(text[f[1] : f[2]])])
        return [f for f in found if not _allowed(f[0], text[f[1] : f[2]].lower(), allow)] if allow else found

    return look


def _allowed(kind: str, value: str, allow: frozenset[str]) -> bool:
    domain = value.rpartition("@")[2] if kind == "email" else ""
    return value in allow or any(domain == a or domain.endswith("." + a) for a in allow if domain)


def _merged(ours: list[Finding], theirs: Iterable[Finding]) -> list[Finding]:
    """Ours are proven: of theirs those are added that overlap none."""
    out = list(ours)
    for kind, start, end in theirs:
        if not any(start < b and a < end for _, a, b in out):
            out.append((kind, start, end))
    return sorted(out, key=lambda f: f[1])


def _presidio() -> Look:
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError as e:
        raise InputError(
            "prepare: personal_data.engine: presidio is not installed; pip install 'tunesmith[presidio]' and "
            "python -m spacy download en_core_web_lg."
        ) from e
    try:
        analyzer = AnalyzerEngine()
    except (OSError, SystemExit) as e:  # it fetches a missing model by pip, which exits where there is no network
        raise InputError(
            "prepare: personal_data.engine: presidio's English model is not installed; python -m spacy download en_core_web_lg."
        ) from e
    known = sorted({*_PRESIDIO, "IP_ADDRESS"} & set(analyzer.get_supported_entities("en")))

    def look(text: str) -> list[Finding]:
        spans = analyzer.analyze(text=text, language="en", entities=known, score_threshold=0.5)
        found = []
        for s in spans:
            kind = _PRESIDIO.get(s.entity_type) or ("ipv6" if ":" in text[s.start : s.end] else "ipv4")
            found.append((kind, int(s.start), int(s.end)))
        return found

    return look


def _facts(mode: str, found: Counter[str], held: Counter[str], distinct: Counter[str], rows: int) -> dict[str, Any]:
    total = sum(found.values())
    done = {"drop": "dropped", "report": "left as they are"}.get(mode, "changed")
    return {
        "summary": f"{total:,} personal values or secrets in {rows:,} row{'s' * (rows != 1)}, which {'was' if rows == 1 else 'were'} {done}"
        if total
        else "no personal data found",
        "numbers": {"values": total, "distinct": sum(distinct.values()), "rows": rows},
        "tables": [
            {
                "title": "Personal data and secrets by kind",
                "columns": ["kind", "found", "distinct", "rows"],
                "rows": [[kind, n, distinct[kind], held[kind]] for kind, n in found.most_common()],
            }
        ]
        if total
        else [],
    }
