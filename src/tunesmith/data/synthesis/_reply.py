"""What a model means by its reply: without its thoughts, its courtesies and its wrapping; lists and JSON as they really come."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tunesmith.data.synthesis._rounds import Answer, NoAnswer

_THOUGHT = re.compile(
    r"<(think|thinking|thought|reasoning|reflection)>.*?</\1>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE
)
_THOUGHT_END = re.compile(r".*(?:</(?:think|thinking|thought|reasoning)>|\[/THINK\])", re.DOTALL | re.IGNORECASE)
_THOUGHT_BEGIN = re.compile(r"\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\])", re.IGNORECASE)
_OPENER = (
    r"sure|certainly|of course|absolutely|okay|ok|got it|great|alright|no problem|here(?:['’]s| is| are| you (?:go|are))|below (?:is|are)|"
    r"the (?:reworded|rewritten|revised|translated|new|paraphrased|improved)|natürlich|gerne?|klar|hier (?:ist|sind)|selbstverständlich|"
    r"bien sûr|voici|certainement|claro|por supuesto|aquí|certo|ecco|com certeza|aqui|конечно|вот|当然|好的|以下|这是|もちろん|以下は"
)
_FRAME = re.compile(
    rf"(?:{_OPENER})(?:(?:[ ,!.]*(?:{_OPENER}))?[^\n:：.!?]{{0,100}}[:：](?:[ \t*]*\n\s*|\**[ \t]+(?=\S))"
    r"|[^\n:：.!]{0,40}[.!]\s*\n\s*)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?:\*\*|#+ ?)?(?:(?:new|rewritten|revised|reworded|paraphrased?|translated|evolved|improved|final|created|given) )*"
    r"#?(?:instruction|prompt|text|translation|version|answer|question|paraphrase|reply|task|rewrite)s?#?(?: \d+)?"
    r"(?:\*\*)?[:：](?:\*\*)?\s*",
    re.IGNORECASE,
)
_CLOSER = re.compile(
    r"\n\s*\n\(?\**(?:let me know|i hope|hope this|feel free|please let me know|note:|note that|"
    r"would you like|is there anything|if you(?:'d| would| need))[^\n]*\s*\Z",
    re.IGNORECASE,
)
_WRAP = re.compile(
    r"<((?:text|passage|instruction|answer|output|result)(?: [0-9a-f]{8})?)>\s*(.*?)\s*</\1>", re.DOTALL | re.IGNORECASE
)
_FENCE = re.compile(r"(`{3,})[\w+-]*[ \t]*\n(.*?)\n?\1", re.DOTALL)
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」"}
_ENTRY = re.compile(
    r"\s*(?:\*\*|#+\s*)?(?:(?:instruction|task|prompt|question)\s*)?(\d+)\s*[.):：](?:\*\*)?\s*(.*)", re.IGNORECASE
)
_BULLET = re.compile(r"\s*[-*•]\s+(.*)")
_TITLE = re.compile(r"(?:\*\*|__)([^*_\n]{1,60}?)\s*(?::\s*(?:\*\*|__)|(?:\*\*|__)\s*[:：–—-])\s*(?=\S)")


def spoken(answer: Answer) -> Answer:
    """Return an answer without the thoughts that some models write before it; NoAnswer where it holds nothing else."""
    if isinstance(answer, NoAnswer):
        return answer
    said = (
        _THOUGHT_END.sub("", _THOUGHT.sub("", answer))
        if answer.lstrip()[:1] in ("<", "[") or "</think" in answer
        else answer
    )
    return NoAnswer("an answer cut off while thinking") if _THOUGHT_BEGIN.match(said) else said


def unframed(reply: str, of: str = "") -> str:
    """Return a reply without courtesies before and after it, a label, a fence, our tags or quotation marks around it.

    What the text that it was made `of` begins with itself stays.
    """
    said = reply.strip()
    for _ in range(3):
        before = said
        for found in (_FRAME.match(said), _LABEL.match(said)):
            if found and found.end() < len(said) and not _begins_so(of, found[0]):
                said = said[found.end() :].strip()
                break
        wrapped = _WRAP.fullmatch(said) or (None if "```" in of else _FENCE.fullmatch(said))
        said = wrapped[2].strip() if wrapped else said
        said = _CLOSER.sub("", said)
        close = _QUOTES.get(said[:1])
        if (
            close
            and len(said) > 1
            and said.endswith(close)
            and close not in said[1:-1]
            and not of.lstrip().startswith(said[0])
        ):
            said = said[1:-1].strip()
        if said == before:
            break
    return said


def _begins_so(of: str, frame: str) -> bool:
    return of.strip()[:8].lower() == frame.strip("*# \n")[:8].lower()


def listed(reply: str) -> list[str]:
    """Return the entries of a numbered list, else of a bulleted one, else of a JSON array; what goes on in further lines is joined.

    Titles in bold before an entry and words such as "Instruction:" are left out.
    """
    for found in json_in(reply):
        held = found if isinstance(found, list) else next((v for v in found.values() if isinstance(v, list)), [])
        if texts := [text.strip() for one in held if (text := _instruction(one)) and text.strip()]:
            return texts
    entries: list[list[str]] = []
    lines = [line for line in reply.splitlines() if not line.strip().startswith("```")]
    numbered = any(_ENTRY.match(line) for line in lines)
    blank = False
    for line in lines:
        found = _ENTRY.match(line) if numbered else _BULLET.match(line)
        if found:
            entries.append([found[found.lastindex or 1]])
        elif line.strip() and entries and (not blank or line[:1].isspace()):
            entries[-1].append(line.strip())
        blank = not line.strip()
    return [text for text in (_entry("\n".join(entry)) for entry in entries) if text]


def _instruction(one: Any) -> str | None:
    found = (
        next((one[k] for k in ("instruction", "prompt", "task", "question") if k in one), None)
        if isinstance(one, dict)
        else one
    )
    return found if isinstance(found, str) else None


def _entry(text: str) -> str:
    said = text.strip()
    title = _TITLE.match(said)
    if title:
        said = said[title.end() :]
    said = _LABEL.sub("", said.strip(), count=1) if _LABEL.match(said.strip()) else said.strip()
    return unframed(re.sub(r"\*\*(.+?)\*\*", r"\1", said).strip("* "))


def pairs(reply: str) -> list[tuple[str, str]] | None:
    """Return the (question, answer) pairs of a reply: JSON anywhere in it, else "Q: ... A: ..." lines; None without any."""
    for found in json_in(reply):
        held = found if isinstance(found, list) else next((v for v in found.values() if isinstance(v, list)), [found])
        made = [pair for one in held if isinstance(one, dict) and (pair := _pair(one))]
        if made:
            return made
    mark = r"^[\W\d]*(?:{})\W*\d*[\W]*[:.：][\s*]*"
    asks, tells = mark.format("Q|Question"), mark.format("A|Answer")
    found_lines = re.findall(
        rf"{asks}(.+?)\s*\n\s*{tells}(.+?)(?=\n\s*(?:{asks[1:]})|\Z)", reply, re.MULTILINE | re.DOTALL
    )
    return [(q.strip("* \n"), a.strip("* \n")) for q, a in found_lines] or None


def _pair(one: dict[str, Any]) -> tuple[str, str] | None:
    lower = {str(k).lower(): v for k, v in one.items()}
    asked, told = lower.get("question", lower.get("q")), lower.get("answer", lower.get("a"))
    return (asked.strip(), str(told).strip()) if isinstance(asked, str) and told not in (None, "") else None


def json_in(reply: str) -> Iterator[Any]:
    """Yield the JSON arrays and objects of a reply, in order; curly quotation marks and a comma too many are forgiven."""
    for text in dict.fromkeys((reply, re.sub(r",\s*([\]}])", r"\1", re.sub("[“”]", '"', reply)))):
        at = 0
        for _ in range(1000):  # a reply of nothing but brackets has an end
            start = re.compile(r"[\[{]").search(text, at)
            if start is None:
                break
            try:
                value, at = json.JSONDecoder().raw_decode(text, start.start())
            except (ValueError, RecursionError):
                at = start.end()
                continue
            yield value
