"""Texts as words and runs of words: what duplicates, contamination and diversity are counted in."""

import re
from collections.abc import Iterable
from itertools import pairwise

from tunesmith.data.records import Chat, Message, Preference, Prompt, Record, Text, Verdict

# A letter of a script that writes no spaces is a word of its own (Thai, Lao, Burmese, Khmer, kana, Han); operators count in sums.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[-+*/=<>^%]")


def words(text: str) -> list[str]:
    """Return a text's words in order, in lower case, without punctuation; numbers and operators of sums are among them."""
    return _WORD.findall(text.lower())


def shingles(found: list[str]) -> list[str]:
    """Return the words and every two neighbours, (2W-1,): the two together forgive an edit more than pairs alone do."""
    return found + [f"{a} {b}" for a, b in pairwise(found)]


def runs(found: list[str], n: int) -> list[str]:
    """Return every run of n words joined by spaces; a shorter text is one run of all its words, none of no word."""
    if len(found) <= n:
        return [" ".join(found)] if found else []
    return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


def jaccard(a: set[str], b: set[str]) -> float:
    """Return what two sets share of all they hold, |a and b| / |a or b|; 1 of two empty ones (Jaccard, 1901)."""
    return len(a & b) / len(a | b) if a or b else 1.0


def asked_and_answered(record: Record) -> tuple[str, list[str]]:
    """Return what a record gives the model to read, and each text that it has it learn; a Text is all answer."""
    match record:
        case Text():
            return "", [record.text]
        case Chat():
            turns = list(zip(record.messages, record.trained, strict=True))
            return _joined(m for m, t in turns if not t), [turn_text(m) for m, t in turns if t]
        case Preference():
            return _joined(record.prompt), [_joined(answer) for answer in record.answers]
        case Verdict():
            return _joined(record.prompt), [_joined(record.answer)]
        case Prompt():
            return _joined(record.prompt), [record.reference or ""]


def _joined(messages: Iterable[Message]) -> str:
    return "\n".join(turn_text(m) for m in messages)


def turn_text(message: Message) -> str:
    """Return all that a turn says: reasoning, content, and the calls of tools with their arguments."""
    if len(message) == 2:
        return str(message["content"])
    said = [str(message[key]) for key in ("reasoning_content", "thinking", "content") if message.get(key)]
    calls = [call.get("function", {}) for call in message.get("tool_calls") or []]
    return "\n".join(said + [f"{c.get('name')} {c.get('arguments')}" for c in calls])
