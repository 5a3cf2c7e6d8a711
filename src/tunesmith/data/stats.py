"""What can be measured of a text's quality without a model: length, symbols, repetition, boilerplate, refusals, unfinished ends.

Repetition as in Rae et al., 2021 (Gopher, arXiv 2112.11446, table A1), the web's rules as in Raffel et al., 2020 (C4,
arXiv 1910.10683, section 2.2). Blocks of code are left out of all that counts symbols and repetition, and Chinese, Japanese and
Thai count a letter as a word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise

from tunesmith.data.ngrams import words

FENCED = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[ \t]*(?=\r?$)|\Z)", re.DOTALL | re.MULTILINE)
GOPHER = {
    "repeated_lines": 0.30, "repeated_paragraphs": 0.30, "repeated_line_chars": 0.20, "repeated_paragraph_chars": 0.20,
    "top_2": 0.20, "top_3": 0.18, "top_4": 0.16,
    "repeated_5": 0.15, "repeated_6": 0.14, "repeated_7": 0.13, "repeated_8": 0.12, "repeated_9": 0.11, "repeated_10": 0.10,
}  # fmt: skip
FEW_WORDS = 50
LOOP_WORDS, LOOP_LETTERS = (
    30,
    100,
)  # one word, or one letter, so often in a row is a loop; no chant and no laugh is so long
_ENDS = ".!?…\"'”’)。！？」』؟۔।။។"
_BOILERPLATE = re.compile(
    r"lorem ipsum|(?:uses?|accept|allow)\s+(?:all\s+)?cookies|cookie (?:policy|settings|preferences)|subscribe to (?:our|the|my)\b"
    r"|sign up for (?:our|the) newsletter|all rights reserved|(?:enable|requires?|activate) javascript|javascript is (?:disabled|required)"
    r"|terms of (?:use|service)\b.{0,40}privacy|privacy policy\b.{0,40}terms|click here to (?:read|subscribe|continue|learn)"
    r"|follow us on|share (?:this|on) (?:facebook|twitter)|skip to (?:main )?content|this site is protected by recaptcha",
    re.IGNORECASE,
)
_HINTS = (
    "lorem", "cookie", "subscribe", "sign up for", "rights reserved", "javascript", "privacy policy", "terms of", "click here",
    "follow us", "share ", "skip to", "recaptcha",
)  # fmt: skip
_ODD = re.compile(r"[^\w\s]|_")
_SIGN_LINE = re.compile(r"^[^\w\n]*[^\w\s][^\w\n]*$", re.MULTILINE)
_SIGNS = re.compile(r"[\s.·•\-–—−_/|]+|[\s+\-<>\[\].,]+")
_CANNOT = r"(?:can(?:no|['’])t|can not|am (?:not able|unable) to|won['’]t|will not)"
_A_MODEL = r"an? (?:ai|artificial intelligence|large language model|language model)\b"
_REFUSAL = re.compile(
    rf"\s*(?:(?:(?:i['’]?m|i am) (?:very |really |so )?)?sorry,?\s*(?:but )?"
    rf"(?:i {_CANNOT}|i am unable|i do(?: not|n['’]t) have|as {_A_MODEL})"
    rf"|(?:unfortunately,? )?as {_A_MODEL}|i(?:['’]m| am) (?:just |only )?{_A_MODEL}"
    rf"|i {_CANNOT} (?:help|assist|provide|fulfil|comply|create|generate|write|answer|engage))",
    re.IGNORECASE,
)


def without_code(text: str) -> str:
    """Return a text without its fenced blocks of code."""
    return FENCED.sub("", text) if "```" in text or "~~~" in text else text


def symbols(text: str) -> float:
    """Return the share of symbols and punctuation among the characters that are no white space; 0 of an empty text.

    Emoji and other pictures (category So) say something and do not count; U+FFFD, which stands for what is lost, does.
    """
    odd: int = sum(c == "\ufffd" or _is_sign(unicodedata.category(c)) for c in _ODD.findall(text))
    return odd / max(len("".join(text.split())), 1)


def _is_sign(category: str) -> bool:
    return category[0] in "SPC" and category != "So"


def is_drawn(text: str) -> bool:
    """Say whether an answer of signs is what was asked for: Morse code, a language of eight signs, a drawing of three lines."""
    return bool(_SIGNS.fullmatch(text)) or len(_SIGN_LINE.findall(text)) >= 3


def loop(found: list[str]) -> str:
    """Return in words the longest run of one word or letter that is a loop, "" where there is none."""
    if len(found) >= LOOP_WORDS and len(found) - len(set(found)) >= LOOP_WORDS - 1:
        times = max((sum(1 for _ in run) for word, run in groupby(found) if word[0].isalpha()), default=0)
        if times >= LOOP_WORDS:
            return f"one word stands {times:,} times in a row"
    longest = max(found, key=len, default="")
    if len(longest) >= LOOP_LETTERS and not longest[0].isdigit():
        times = max(sum(1 for _ in run) for _, run in groupby(longest))
        if times >= LOOP_LETTERS:
            return f"one letter stands {times:,} times in a row"
    return ""


def is_prose(line: str) -> bool:
    """Say whether a line is prose: 60% of it letters (with their marks), in words; no table, formula, path or row of single letters."""
    seen = "".join(line.split())
    letters = sum(map(str.isalpha, seen))
    if not line.isascii():
        letters += sum(unicodedata.category(c)[0] == "M" for c in seen)
    single = line.isascii() and letters < 2 * len(line.split())
    return bool(seen) and letters >= 0.6 * len(seen) and not single and line.count("|") < 2


def repeated(parts: Sequence[str]) -> tuple[float, float]:
    """Return the share of parts (lines, paragraphs) that stood before already, and the share of characters in them."""
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count, chars = count + 1, chars + len(part)
        seen.add(part)
    return count / max(len(parts), 1), chars / max(sum(map(len, parts)), 1)


def top_run(found: list[str], n: int) -> float:
    """Return the share of the words' characters that stand in the most frequent run of n words; 0 where none comes twice."""
    counts = Counter(zip(*(found[i:] for i in range(n)), strict=False))
    most = max((sum(map(len, run)) * times for run, times in counts.items() if times > 1), default=0)
    return min(most / max(sum(map(len, found)), 1), 1.0)


def repeated_runs(found: list[str], n: int) -> float:
    """Return the share of the words' characters that stand in a run of n words that stood before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at + n <= len(found):
        run = tuple(found[at : at + n])
        if run in seen:
            chars += sum(map(len, run))
            at += n
        else:
            seen.add(run)
            at += 1
    return chars / max(sum(map(len, found)), 1)


def repetition(text: str) -> dict[str, float]:
    """Return the thirteen measures of table A1 (keys of GOPHER), 0 where nothing is repeated.

    Only lines of prose count: a table, a formula or a list of numbers repeats its signs without saying anything twice. All are 0
    of a text of fewer than 50 words of prose (Gopher keeps none so short): two that come twice are a large share of it.
    """
    prose = [line.strip() if is_prose(line) else "" for line in without_code(text).split("\n")]
    found = [w for w in words("\n".join(prose)) if w[0].isalpha()]
    out = dict.fromkeys(GOPHER, 0.0)
    if len(found) < FEW_WORDS:
        return out
    lines = [line for line in prose if line]
    paragraphs = ["\n".join(p) for full, p in groupby(prose, key=bool) if full]
    out["repeated_lines"], out["repeated_line_chars"] = repeated(lines)
    out["repeated_paragraphs"], out["repeated_paragraph_chars"] = repeated(paragraphs)
    if len(set(pairwise(found))) == max(len(found) - 1, 0):
        return out  # no two words come twice, so no longer run does
    for n in (2, 3, 4):
        out[f"top_{n}"] = top_run(found, n)
    for n in range(5, 11):
        out[f"repeated_{n}"] = repeated_runs(found, n)
        if not out[f"repeated_{n}"]:
            break
    return out


def boilerplate(text: str, least: int = 1) -> float:
    """Return the share of a text's characters in lines that web pages carry: cookies, newsletters, rights, lorem ipsum.

    It is 0 where fewer than `least` lines are such.
    """
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):  # the pattern is slow, and most texts have none of it
        return 0.0
    lines = [line for line in text.split("\n") if line.strip()]
    found = [len(line) for line in lines if _BOILERPLATE.search(line)]
    return sum(found) / max(sum(map(len, lines)), 1) if len(found) >= least else 0.0


def refuses(text: str) -> bool:
    """Say whether an answer begins as a refusal does ("As an AI language model", "I'm sorry, but I can't")."""
    return bool(_REFUSAL.match(text))


def unfinished(text: str) -> bool:
    """Say whether a text breaks off: an open block of code, or 40 words or more whose last line is prose and ends in mid-sentence."""
    if len(re.findall(r"^[ \t]*```", text, re.MULTILINE)) % 2:
        return True
    last = text.rstrip().rsplit("\n", 1)[-1].strip()
    if len(last) < 40 or not re.match(r"[^\W\d_]", last) or len(words(text)) < 40:
        return False
    return last[-1] not in _ENDS and (last[-1].isalpha() or last[-1] in ",;:-–")


def c4_fault(text: str) -> str | None:
    """Return what C4's rules find wrong with a web page, None where nothing; a line must end in a sentence's end to count."""
    lowered = text.lower()
    if "lorem ipsum" in lowered:
        return 'holds "lorem ipsum"'
    if "{" in text:
        return "holds a curly bracket"
    if "javascript" in lowered:
        return 'holds the word "javascript"'
    lines = [line.strip() for line in text.split("\n")]
    sentences = sum(len(re.findall(r"[.!?…。！？؟۔।။។]+", line)) for line in lines if line and line[-1] in _ENDS)
    return f"has {sentences} whole sentences, C4 wants 3" if sentences < 3 else None
