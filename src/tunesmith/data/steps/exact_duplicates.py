"""Exact duplicates: rows that say the same, or ask the same, once what does not matter is set aside."""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any, Literal

import numpy as np

from tunesmith.data.content import prompt_turns
from tunesmith.data.records import Chat, Message, Preference, Prompt, Record, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError

ORDER = 30
DEFAULT = True
_SPACE = re.compile(r"\s+")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


def normalised(text: str, case: bool = False, space: bool = True, punctuation: bool = False) -> str:
    """Return a text in NFC, and without what is not to count: letter case, runs of white space, punctuation."""
    text = unicodedata.normalize("NFC", text)
    text = text.casefold() if case else text
    text = _PUNCTUATION.sub(" ", text) if punctuation else text
    return _SPACE.sub(" ", text).strip() if space else text


def key(record: Record, by: str = "record", case: bool = False, space: bool = True, punctuation: bool = False) -> bytes:
    """Return 16 bytes that two records share exactly where they are duplicates (128 bits of BLAKE2b).

    by "record": all turns with their roles, reasoning, tool calls, which are trained, the tools, a verdict; by "prompt": the
    turns before the first answer. Extra fields and scores do not count.
    """

    def plain(message: Message) -> list[Any]:
        kept = {
            k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")
        }  # ids are made anew by every export
        said = {k: normalised(v, case, space, punctuation) if isinstance(v, str) else v for k, v in kept.items()}
        return [said, [call.get("function") for call in message.get("tool_calls") or []]]

    def turns(messages: list[Message]) -> list[Any]:
        return [plain(m) for m in messages]

    found: list[Any]
    match record:
        case Text():
            found = ["text", normalised(record.text, case, space, punctuation)]
        case _ if by == "prompt":
            found = ["prompt", turns(prompt_turns(record)), record.tools]
        case Chat():
            found = ["chat", turns(record.messages), record.trained, record.tools]
        case Preference():
            found = ["preference", turns(record.prompt), [turns(a) for a in record.answers], record.tools]
        case Verdict():
            found = ["verdict", turns(record.prompt), turns(record.answer), record.good, record.tools]
        case Prompt():
            reference = None if record.reference is None else normalised(record.reference, case, space, punctuation)
            found = ["prompt", turns(record.prompt), reference, record.tools]
    said = json.dumps(found, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def apply(
    rows: Rows,
    *,
    by: Literal["record", "prompt"] = "record",
    ignore_case: bool = False,
    ignore_space: bool = True,
    ignore_punctuation: bool = False,
    best: str | None = None,
) -> dict[str, Any]:
    """Drop every row that repeats another: the first of a group stays, or the one with the highest value in the column `best`.

    Returns facts: how many, in groups of what size. InputError where no earlier step made the column `best`.
    """
    if best is not None and best not in rows.columns:
        known = ", ".join(sorted(rows.columns)) or "none"
        raise InputError(f'prepare.exact_duplicates.best names the column "{best}"; earlier steps made: {known}.')
    first: dict[bytes, int] = {}
    groups: dict[int, list[int]] = defaultdict(list)
    count = 0
    for id_, record in rows:
        count += 1
        kept = first.setdefault(key(record, by, ignore_case, ignore_space, ignore_punctuation), id_)
        if kept != id_:
            groups[kept].append(id_)
    score = None if best is None else np.nan_to_num(rows.columns[best], nan=-np.inf)
    for leader, others in groups.items():
        members = [leader, *others]
        kept = leader if score is None else max(members, key=lambda i: (score[i], -i))
        origin = rows[kept].origin
        for id_ in members:
            if id_ != kept:
                rows.drop(id_, f"repeats {'the prompt of ' * (by == 'prompt')}{origin}", of=kept)
    return facts(groups, count, by)


def facts(groups: dict[int, list[int]], count: int, by: str) -> dict[str, Any]:
    """Return the facts for the card."""
    sizes = Counter(len(others) + 1 for others in groups.values())
    dropped = sum(len(others) for others in groups.values())
    what = "the prompt of another" if by == "prompt" else "another"
    return {
        "summary": f"{dropped:,} of {count:,} rows repeat {what} ({len(groups):,} group{'s' * (len(groups) != 1)}).",
        "numbers": {"duplicates": dropped, "groups": len(groups), "largest_group": max(sizes, default=0)},
        "tables": [
            {"title": "groups by size", "columns": ["rows", "groups"], "rows": [list(x) for x in sorted(sizes.items())]}
        ],
    }
