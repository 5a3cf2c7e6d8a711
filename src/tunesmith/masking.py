"""Secrets kept out of what leaves the run: by the name of their key, by their own look, or inside an address."""

import re
from typing import Any

MASK = "•••"
SECRET = re.compile(r"((api|access|private)[_-]?key|passw|secret|credential|(^|[._-])(token|auth)$)", re.IGNORECASE)
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}")
# user:password@ after a scheme, also in an address written as a path, with one slash; a password may have "/" and "@" in it
_LOGIN = re.compile(r"(\b(?:[a-z][a-z0-9+.-]*:/|https?:|ftp:)/)\S+@", re.IGNORECASE)
_USER = re.compile(r"(:/{1,2})[^/\s@]+@")  # and after what is no scheme, or not known to be one
_QUERY = re.compile(
    r"([?&][^=&\s]*(?:key|token|secret|signature|passw|credential|auth)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)


def masked(key: str, value: Any) -> Any:
    """Return the value of a setting, "•••" where its key's name says that it is secret, and without secrets inside a text."""
    if SECRET.search(key) and value:
        return MASK
    return clean(value) if isinstance(value, str) else value


def clean(text: str) -> str:
    """Return a text without passwords and keys in addresses, and without tokens that can be told by their beginning."""
    text = _USER.sub(rf"\g<1>{MASK}@", _LOGIN.sub(rf"\g<1>{MASK}@", text))
    return _TOKEN.sub(MASK, _QUERY.sub(rf"\g<1>{MASK}", text))


def flatten(value: object, key: str = "") -> dict[str, Any]:
    """Return a nested mapping as {"train.epochs": 3, "data.0.path": "x.jsonl"}, masked; lists of plain values stay lists."""
    if isinstance(value, dict) and value:
        pairs = [flatten(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        pairs = [flatten(inner, f"{key}.{i}") for i, inner in enumerate(value)]
    elif isinstance(value, list):
        return {key: masked(key, [masked("", item) for item in value])} if key else {}
    else:
        return {key: masked(key, value)} if key else {}
    return {name: found for pair in pairs for name, found in pair.items()}
