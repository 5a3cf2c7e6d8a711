"""Language: which one each row is written in, and, where wanted, only rows of some."""

import re
from collections import Counter
from functools import cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.data.ngrams import asked_and_answered
from tunesmith.data.records import Record
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError, did_you_mean

ORDER = 20
DEFAULT = True
UNKNOWN = "unknown"
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\S+@\S+", re.DOTALL)
_NO_LETTERS = re.compile(r"[\W\d_]+")
_CODE = re.compile(
    r"[{};]\s*$|^\s*(?:def|class|import|from|return|function|const|let|var|public|#include|SELECT)\b.*[(:;{]?$", re.M
)
_READ = 500  # characters; more of a text changes the time and little else


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def languages() -> list[str]:
    """Return the codes that can be told apart (ISO 639), sorted; a language's number in the column is its place here."""
    return sorted(label for label in _identifier().labels if label != "zxx")


def prose(record: Record) -> str:
    """Return what a record says in a language: answers first, without code, addresses and links, at most 500 characters."""
    asked, answered = asked_and_answered(record)
    text = _NO_PROSE.sub(" ", "\n".join([*answered, asked])[: 3 * _READ])
    lines = [line for line in text.split("\n") if line.strip()]
    code = sum(bool(_CODE.search(line)) for line in lines)
    return "" if lines and 2 * code > len(lines) else text[:_READ]


def detect(text: str, min_letters: int = 20, min_confidence: float = 0.5) -> tuple[str, float]:
    """Return (language, confidence) of a text, ("unknown", confidence) of one too short, of no language or of an unsure one.

    A letter counts by its bytes in UTF-8 for a third: one of Chinese says as much as three of English.
    """
    letters = _NO_LETTERS.sub("", text)
    weight = len(letters) if letters.isascii() else sum(3 if c >= "\u0e00" else 1 for c in letters)
    if weight < min_letters:
        return UNKNOWN, 0.0
    found, confidence = _identifier().classify(text)
    sure = found != "zxx" and confidence >= min_confidence
    return (found if sure else UNKNOWN), confidence


def check(keep: list[str] | None = None) -> None:
    """InputError where `keep` names a language that cannot be told."""
    for code in keep or []:
        if code not in languages() and code != UNKNOWN:
            raise InputError(
                f'prepare.language.keep: no language has the code "{code}".{did_you_mean(code, languages())}'
            )
    if keep == []:
        raise InputError(
            "prepare.language.keep is empty, which would drop every row; name languages, such as [en, de]."
        )


def apply(
    rows: Rows,
    *,
    keep: list[str] | None = None,
    keep_unknown: bool = True,
    min_letters: Annotated[int, Field(ge=1)] = 20,
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> dict[str, Any]:
    """Drop rows in other languages than those of `keep` (none where it is left out: then they are only counted).

    Code, numbers and very short rows are of no language that can be told: they stay unless `keep_unknown` is false. Writes the
    columns "language" (its place in `languages()`, NaN where unknown) and "language_confidence". Returns facts.
    """
    number = {code: i for i, code in enumerate(languages())}
    column, sure = rows.column("language"), rows.column("language_confidence")
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for id_, record in rows:
        found, confidence = detect(prose(record), min_letters, min_confidence)
        counts[found] += 1
        column[id_], sure[id_] = number.get(found, np.nan), confidence
        wanted = keep is None or found in keep or (found == UNKNOWN and keep_unknown)
        if not wanted:
            dropped[found] += 1
            what = (
                "no language that can be told"
                if found == UNKNOWN
                else f"language {found} (confidence {confidence:.2f})"
            )
            rows.drop(id_, f"{what}, wanted {' or '.join(keep or [])}", language=found, confidence=round(confidence, 3))
    return facts(counts, dropped, number)


def facts(counts: Counter[str], dropped: Counter[str], number: dict[str, int]) -> dict[str, Any]:
    """Return the facts for the card: rows by language, the most frequent first."""
    total = max(counts.total(), 1)
    listed = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    first = ", ".join(f"{code} {n / total:.1%}" for code, n in listed[:4])
    told = [code for code in counts if code != UNKNOWN]
    return {
        "summary": f"{len(told)} language{'s' * (len(told) != 1)}: {first or 'no rows'}.",
        "numbers": {"languages": len(told), "unknown": counts[UNKNOWN], "dropped": dropped.total()},
        "tables": [
            {
                "title": "rows by language",
                "columns": ["language", "number in the column", "rows", "share", "dropped"],
                "rows": [[code, number.get(code), n, round(n / total, 4), dropped[code]] for code, n in listed],
            }
        ],
    }
