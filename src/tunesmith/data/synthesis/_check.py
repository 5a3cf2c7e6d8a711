"""What an answer of a model must be before it may become a row; each check returns why not, or None."""

import re
from collections import Counter

_WORD = re.compile(r"\w+")
_CANNOT = (
    r"(?:can(?:not| not|['’]t)|could(?: not|n['’]t)|won['’]t|will not|am (?:unable|not able)|['’]m (?:unable|not able))"
)
_SORRY = r"(?:(?:i(?:['’]m| am) (?:very |really |so )?)?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
_DO = "assist|help|provide|fulfil|comply|answer|do that|create|write|generate|support|engage|discuss"
_REFUSAL = re.compile(
    rf"\W*(?:{_SORRY}\b.{{0,60}}{_CANNOT}\b|i ?{_CANNOT} (?:to )?(?:{_DO})"
    r"|(?:as|i(?:['’]m| am)) (?:just |only )?an? (?:ai\b|artificial|(?:large )?language model)"
    r"|(?:es )?tut mir leid, (?:aber )?(?:ich|das|dabei)|je suis désolée?, (?:mais )?je|lo siento, (?:pero )?no"
    r"|mi dispiace, (?:ma )?non|desculpe, (?:mas )?(?:eu )?não|(?:很|非常)?(?:抱歉|对不起)，?.{0,4}(?:我)?(?:不能|无法)|申し訳)",
    re.IGNORECASE | re.DOTALL,
)
# Words of our own questions: a model that repeats them has answered about the task instead of doing it.
_LEAK = re.compile(
    r"#(?:given|rewritten|created|new) prompt#|^</?(?:text|passage|instruction)>\s*$|</?(?:prompt|question|answer\w*|critique) [0-9a-f]{8}>"
    r"|reply with the (?:new instruction|reworded text|translation|new answer) alone",
    re.IGNORECASE | re.MULTILINE,
)
_STOP = frozenset(
    "the a an of to and in is it for on that this with as are was be by or at from which what how do does did".split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case."""
    return _WORD.findall(text.lower())


def unusable(text: str, least: int = 1, most: int = 4000) -> str | None:
    """Return why a text is no use anywhere: empty, a refusal, words of our question in it, a loop, too short or long (words)."""
    found = words(text)
    if not found:
        return "an empty answer"
    if _REFUSAL.match(text):
        return "a refusal"
    if _LEAK.search(text):
        return "words of the question in the answer"
    if len(found) < least:
        return "an answer that is too short"
    if len(found) > most:
        return "an answer that is too long"
    if looped(found):
        return "an answer that repeats itself"
    return None


def unusable_unless_refusal(text: str) -> str | None:
    """Return why a text is no use where answers are judged or revised; a refusal is some use there: it may be more than is needed."""
    why = unusable(text)
    return None if why == "a refusal" else why


def looped(found: list[str], length: int = 4) -> bool:
    """Say whether over a third of a text's runs of four words are repeats of earlier ones (from 24 words on)."""
    if len(found) < 24:
        return False
    runs = Counter(tuple(found[i : i + length]) for i in range(len(found) - length + 1))
    return sum(runs.values()) - len(runs) > sum(runs.values()) / 3


def unfaithful(text: str, original: str) -> str | None:
    """Return why a text is no rewording of the original: the same, other numbers or placeholders, another length."""
    if words(text) == words(original):
        return "a rewording that changes nothing"
    kept = re.findall(r"\d+(?:[.,]\d+)*|\{\{.*?\}\}", original)
    if Counter(re.findall(r"\d+(?:[.,]\d+)*|\{\{.*?\}\}", text)) != Counter(kept):
        return "a rewording with other numbers"
    if not 0.4 <= len(words(text)) / max(len(words(original)), 1) <= 2.5:
        return "a rewording of another length"
    return None


def grounded(text: str, passage: str) -> float:
    """Return the share of a text's words, small ones left out, that the passage has; 1 for a text without such words."""
    said = [w for w in words(text) if w not in _STOP]
    has = set(words(passage))
    return sum(w in has for w in said) / len(said) if said else 1.0
