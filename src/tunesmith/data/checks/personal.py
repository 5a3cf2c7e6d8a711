"""Personal data and secrets, by kind and count: neither the data nor an excerpt of it is ever shown."""

import re
from collections import Counter

from tunesmith.data import personal
from tunesmith.data.checks.found import Found, Item, locate
from tunesmith.data.personal import secrets

_KINDS = tuple(k for k in personal.KINDS if k not in ("name", "address", "birth_date"))
"""Names and addresses of invented people fill honest sets; the step personal_data finds those too."""
_SECRETS = frozenset(pattern.kind for pattern in secrets.PATTERNS)
_NUMBER = re.compile(r"[0-9][0-9 ().-]{6}[0-9]")


def check(item: Item, found: Found) -> None:
    """Note what kinds of personal data, and of secrets, a record holds."""
    text = item.text
    if not (_word(text) or _NUMBER.search(text)):
        return
    findings = personal.find(text, _KINDS)
    for name, secret in (("secret", True), ("personal_data", False)):
        those = [finding for finding in findings if (finding[0] in _SECRETS) == secret]
        if those:
            kinds = Counter(kind.replace("_", " ") for kind, _, _ in those)
            named = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in kinds.most_common())
            _, start, end = those[0]
            found.add(name, item.number, locate(item.row, text[start:end]), f"the text holds: {named}.")


def _word(text: str) -> bool:
    """Say whether a text has a piece that some of them must have; single characters are asked for first, which is quicker."""
    return (
        "@" in text
        or "assw" in text
        or "ecret" in text
        or "oken" in text
        or "API" in text
        or "AKIA" in text
        or ("_" in text and ("_key" in text or "hp_" in text))
        or ("-" in text and ("-----B" in text or "sk-" in text))
        or ("J" in text and "eyJ" in text)
    )
