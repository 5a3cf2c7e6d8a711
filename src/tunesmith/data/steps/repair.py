"""Repair: mend what can be mended without a guess, and drop the rows that nothing can be learnt from."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tunesmith.data import mend, mend_turns
from tunesmith.data.content import rewritten
from tunesmith.data.formats._common import answers
from tunesmith.data.records import Chat, Message, Preference, Prompt, Record, Text, Verdict
from tunesmith.data.rows import Rows

ORDER = 10
DEFAULT = True
_SAID = {
    "mojibake": "text read in the wrong encoding",
    "line_ends": "line ends",
    "control": "control characters",
    "invisible": "invisible characters",
    "entities": "HTML entities",
    "trim": "white space at the ends",
    "empty_turns": "empty turns",
    "move_system": "a system turn that was not the first",
    "merge_turns": "several turns of one role in a row",
    "equal_answers": "equal answers",
}


def mended(record: Record, wanted: set[str], join: str = "\n\n") -> tuple[Record, list[str]]:
    """Return the record mended in the wanted ways (keys of _SAID), and the ways in which it was."""
    done: set[str] = set()

    def change(place: str, text: str) -> str:
        if ".tool_calls" in place:  # a call's arguments are data: they must reach the tool as they are
            return text
        for name, function in mend.MENDINGS.items():
            new = mend.outside_code(text, function) if name in wanted else text
            if new != text:
                done.add(name)
                text = new
        new = mend.trim(text) if "trim" in wanted and place != "text" else text
        if new != text:
            done.add("trim")
        return new

    record = rewritten(record, change)
    for name, new in _arranged(record, wanted, join):
        if new != record:
            done.add(name)
            record = new
    return record, [name for name in _SAID if name in done]


def _arranged(record: Record, wanted: set[str], join: str) -> Iterator[tuple[str, Record]]:
    """Yield the record after every mending of its turns."""
    steps = {
        "empty_turns": mend_turns.without_empty,
        "move_system": mend_turns.system_first,
        "merge_turns": lambda turns: mend_turns.merged(turns, join),
    }
    for name, step in steps.items():
        if name not in wanted or isinstance(record, Text):
            continue
        if isinstance(record, Chat):
            turns = step(list(zip(record.messages, record.trained, strict=True)))
            record = replace(record, messages=[m for m, _ in turns], trained=[t for _, t in turns])
        else:
            record = replace(record, prompt=[m for m, _ in step([(m, False) for m in record.prompt])])
        yield name, record
    if isinstance(record, Preference) and "equal_answers" in wanted and len(record.answers) > 2:
        kept = [i for i, answer in enumerate(record.answers) if answer not in record.answers[:i]]
        if 1 < len(kept) < len(record.answers):
            scores = None if record.scores is None else [record.scores[i] for i in kept]
            yield "equal_answers", replace(record, answers=[record.answers[i] for i in kept], scores=scores)


def useless(record: Record) -> str | None:
    """Return why nothing can be learnt from a record, None where something can."""
    match record:
        case Text():
            return None if record.text.strip() else "the text is empty"
        case Chat():
            if not any(t and answers(m) for m, t in zip(record.messages, record.trained, strict=True)):
                return "no answer to learn from"
            return mend_turns.orphan(record.messages)
        case Preference():
            bare = [_bare(answer) for answer in record.answers]
            if not all(any(answers(m) for m in answer) for answer in record.answers):
                return "one of the answers is empty"
            if bare[0] == bare[-1]:
                return "the chosen and the rejected answer are the same"
            found = (mend_turns.orphan(record.prompt + answer) for answer in record.answers)
            return next((fault for fault in found if fault), None)
        case Verdict():
            if not any(answers(m) for m in record.answer):
                return "the answer is empty"
            return mend_turns.orphan(record.prompt + record.answer)
        case Prompt():
            return mend_turns.orphan(record.prompt) if any(answers(m) for m in record.prompt) else "the prompt is empty"


def _bare(answer: list[Message]) -> list[Message]:
    return [{**m, "content": str(m["content"]).strip()} for m in answer]


def apply(
    rows: Rows,
    *,
    mojibake: bool = True,
    line_ends: bool = True,
    control: bool = True,
    invisible: bool = True,
    entities: bool = False,
    trim: bool = False,
    empty_turns: bool = True,
    move_system: bool = True,
    merge_turns: bool = True,
    join: str = "\n\n",
    drop_useless: bool = True,
) -> dict[str, Any]:
    """Mend every row in the ways that are on, and drop those that nothing can be learnt from. Returns facts.

    Turns of one role in a row are joined by `join`. Code and the arguments of tool calls are never touched.
    """
    options = {
        "mojibake": mojibake, "line_ends": line_ends, "control": control, "invisible": invisible, "entities": entities, "trim": trim,
        "empty_turns": empty_turns, "move_system": move_system, "merge_turns": merge_turns, "equal_answers": drop_useless,
    }  # fmt: skip
    wanted = {name for name, on in options.items() if on}
    ways: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    changed = 0
    for id_, record in rows:
        new, done = mended(record, wanted, join)
        why = useless(new) if drop_useless else None
        if why:
            reasons[_SHORT.get(why.split()[0], why)] += 1
            rows.drop(id_, why)
        elif done:
            changed += 1
            ways.update(done)
            rows.change(id_, new, f"mended {', '.join(_SAID[name] for name in done)}", mended=done)
    return facts(ways, reasons, changed)


_SHORT = {"turn": "a tool's result without its call"}


def facts(ways: Counter[str], reasons: Counter[str], changed: int) -> dict[str, Any]:
    """Return the facts for the card: rows by what was mended in them, and by why they were dropped."""
    tables = [
        {"title": title, "columns": [column, "rows"], "rows": [list(item) for item in counts]}
        for title, column, counts in (
            ("mended", "what", [(_SAID[name], n) for name, n in ways.most_common()]),
            ("dropped", "why", reasons.most_common()),
        )
        if counts
    ]
    return {
        "summary": f"{changed:,} row{'s' * (changed != 1)} mended; {reasons.total():,} that nothing can be learnt from dropped.",
        "numbers": {**{f"mended_{name}": n for name, n in sorted(ways.items())}, "nothing_to_learn": reasons.total()},
        "tables": tables,
    }
