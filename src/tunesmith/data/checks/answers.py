"""What an answer teaches that nobody wants: the prompt said again, placeholders, refusals, loops, breaking off, special tokens."""

import re
from itertools import pairwise

from tunesmith.data.checks.found import Found, Item
from tunesmith.data.records import Chat, Record, Text

_PLACEHOLDER = re.compile(
    r"(?<![\\^_{}\w$])\{\{ ?[a-zA-Z][\w .]{0,40}\}\}(?!\})|\bTODO\b|\b[Ll]orem ipsum\b|<no ?(?:in|out)put>|"
    r"\[(?:insert|INSERT|Insert) [^\]\n]{1,40}\]"
)
_CODE = re.compile(r"```|\{%|</|\\[a-zA-Z]{3,}|;\n|\bdef |#include|v-for|=\"\{\{|import ")
_FORM = re.compile(
    r"template|form\b|letter|e-?mail|draft|invitation|contract|outline|script|policy|post\b|ad\b", re.IGNORECASE
)
_NOTHING = frozenset((
    "nan", "null", "undefined", "n/a", "tbd", "tba", "nooutput", "no output", "[object object]", "#n/a", "#ref!", "#value!",
))  # fmt: skip
_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: (?:language )?(?:model|assistant)\b|,? i (?:can|do|am|have)(?:not|n?['’]t| not)\b)|"
    r"\bi(?: a|['’])m (?:just )?an ai (?:language )?model\b|\bi(?: a|['’])m (?:very |really )?sorry,? but (?:i|as an)\b|"
    r"^(?:sorry,? (?:but )?)?i(?: can(?:no|['’])t|(?: a|['’])m (?:unable|not able) to) (?:help|assist|fulfill|comply|provide|answer)",
    re.IGNORECASE,
)
_I = ("I ", "I'", "I’")
_SIGNS = re.compile(r"[.…?!*#$%&_-]+$")
_SIGN = re.compile(r"punctuat|sign|symbol|mark|operator|character|emoji|fill|blank", re.IGNORECASE)
_SPECIAL = re.compile(
    r"<\|[a-zA-Z][\w ]{1,30}\|>|<[｜|][^<>\n]{2,40}[｜|]>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>\s*$|^<s>|<(?:bos|eos|pad)>"
)
_NEXT = re.compile(r"\n[ \t]*(?:#{2,3} ?(?:Instruction|Human|Input|User)\b:?|(?:Human|USER|User|Instruction) ?: )")
_TALK = re.compile(r"dialog|conversation|chat|interview|script|scene|\bbot\b|talk|exchange|Human:|User:", re.IGNORECASE)
_DANGLING = frozenset((
    "the", "a", "an", "and", "or", "of", "because", "which", "whose", "their", "its", "his", "your", "my", "our", "than", "if", "but",
))  # fmt: skip
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})", re.MULTILINE)


def check(item: Item, found: Found) -> None:
    """Note what is wrong with a record's answers (a Text is one; of its prompt only special tokens are asked for)."""
    text = item.text
    if ("<" in text or "[" in text) and (hit := _SPECIAL.search(text)):
        found.at(
            "special_token", item, f'"{hit[0].strip()}" is how a tokenizer writes a special token.', text, *hit.span()
        )
    plain = isinstance(item.record, Text)
    prompt = item.prompt.strip()
    for answer in item.answers:
        _words(item, answer, found)
        _shape(item, answer, found)
        if plain:
            continue
        stripped = answer.strip()
        if len(stripped) >= 20 and said_again(stripped, prompt, item.record):
            found.at("answer_is_prompt", item, "the answer is the prompt, word for word.", answer)
        if len(stripped) < 20 and says_nothing(stripped, prompt):
            found.at("placeholder", item, f'the whole answer is "{stripped}".', answer)
        if (" AI" in answer or "orry" in answer or stripped[:2] in _I) and (hit := _REFUSAL.search(answer)):
            found.at("refusal", item, f'"{hit[0]}": the answer refuses, or talks of being an AI.', answer, *hit.span())
        if "\n" in answer and (hit := _NEXT.search(answer)) and not _TALK.search(prompt):
            message = f'"{hit[0].strip()}": the answer goes on with what the next turn says.'
            found.at("next_turn", item, message, answer, *hit.span())
        if broken := breaks_off(stripped):
            found.at("unfinished", item, broken, answer, max(0, len(answer) - 60))


def says_nothing(answer: str, prompt: str) -> bool:
    """Say whether an answer is a word for nothing, or no more than signs that nobody asked for."""
    return answer.lower() in _NOTHING or bool(_SIGNS.match(answer) and not _SIGN.search(prompt))


def said_again(answer: str, prompt: str, record: Record) -> bool:
    """Say whether an answer is the prompt, or in a conversation the user's turn before it, but for case and ends."""
    if len(answer) == len(prompt) and answer.lower() == prompt.lower():
        return True
    if not isinstance(record, Chat) or len(record.messages) < 3:
        return False
    said = [(m["role"], str(m["content"]).strip()) for m in record.messages]
    pairs = [(a[1], b[1]) for a, b in pairwise(said) if a[0] == "user" and b[0] == "assistant"]
    return any(b == answer and len(a) == len(b) and a.lower() == b.lower() for a, b in pairs)


def _words(item: Item, answer: str, found: Found) -> None:
    signs = (
        ("{" in answer and "{{" in answer)
        or ("[" in answer and "nsert " in answer)
        or ("<" in answer and "put>" in answer)
    )
    if not (signs or "TODO" in answer or "orem ip" in answer):
        return
    hit = _PLACEHOLDER.search(answer)
    if not hit or hit[0] in item.prompt or (hit[0][0] == "[" and _FORM.search(item.prompt)):
        return  # a form is asked for, or the prompt brings the placeholder
    if not _CODE.search(answer):
        found.at(
            "placeholder", item, f'"{hit[0]}" looks like a placeholder that nobody filled in.', answer, *hit.span()
        )


def _shape(item: Item, answer: str, found: Found) -> None:
    if "`" in answer and "```" in answer and len(_FENCE.findall(answer)) % 2:
        start = answer.rfind("```")
        found.at("code_fence", item, "a code block is opened with ``` and never closed.", answer, start, start + 3)
    if phrase := loop(answer):
        start = answer.find(phrase)
        found.at("loop", item, f'"{phrase.strip()[:30]}" comes again and again.', answer, start, start + len(phrase))


def loop(text: str, shortest: int = 120) -> str | None:
    """Return the phrase that a text repeats at least five times running, filling a third of it; None where it does not.

    Looked for from a few places, for a model's loop seldom ends once begun; a phrase of one letter or sign is no loop (a line of a table).
    """
    size = len(text)
    if size < shortest:
        return None
    for at in (size - 17, size // 2, size // 4 * 3):
        probe = text[at : at + 16]
        if text.count(probe) < 4:
            continue
        before = text.rfind(probe, max(0, at - 400), at + 15)
        begin, period = (before, at - before) if before >= 0 else (at, text.find(probe, at + 1) - at)
        if not 0 < period <= 400:
            continue
        start = stop = begin
        while start > 0 and text[start - 1] == text[start - 1 + period]:
            start -= 1
        while stop + period < size and text[stop] == text[stop + period]:
            stop += 1
        phrase = text[begin : begin + period]
        length = stop + period - start
        letters = len(set(filter(str.isalpha, phrase)))
        if length >= 5 * period and length >= size / 3 and length >= (60 if letters > 2 else 400) and letters >= 2:
            return text[start : start + period]
    return None


def breaks_off(answer: str) -> str | None:
    """Return how an answer breaks off, in words (at a comma, or at a word such as "the"); None where it does not seem to."""
    if len(answer) < 40 or not (answer[-1] == "," or answer[-1].islower()):
        return None
    last = answer[answer.rfind("\n") + 1 :]
    if len(last) < 30 or "|" in last or "`" in last:
        return None
    if answer[-1] == ",":
        return "the answer ends with a comma."
    word = last[last.rfind(" ") + 1 :]
    return f'the answer breaks off after "{word}".' if word in _DANGLING else None
