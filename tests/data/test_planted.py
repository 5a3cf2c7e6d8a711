"""Defects planted in 1,000 natural rows: every one is found at its row and as its kind, and nothing else is; a clean set stays clean."""

import copy
import json
import random

import natural
import pytest

from tunesmith import registry
from tunesmith.data import detect
from tunesmith.data.checks.kinds import KINDS
from tunesmith.data.inspect import inspect
from tunesmith.data.records import Origin
from tunesmith.data.rows import Rows

ROWS = 250  # of each format


def put(field, change):
    """Return what changes a row's field (a path of keys) by a function of its value and a writer."""

    def changed(row, writer):
        *path, last = field
        inner = row
        for key in path:
            inner = inner[key]
        inner[last] = change(inner[last], writer)
        return row

    return changed


def out(change):
    return put(["output"], change)


def turned(row, *turns, tools=False):
    """Return a row of these turns."""
    return {"messages": list(turns)} | ({"tools": natural.TOOLS} if tools else {})


def asks(w):
    return natural.says("user", w.prompt())


def calls(*made):
    return natural.says("assistant", "", tool_calls=list(made))


def says(w):
    return natural.says("assistant", w.prose())


BRIDGE = natural.GERMAN.replace("Mühle", "Brücke")
BAD = ("{place: Oslo}", {"days": 3}, {"place": 3}, {"place": "Oslo", "unit": "k"}, {"place": "Oslo", "dayz": 3})
MISSPELT = natural.call("c1", "get_wether", {"place": "Oslo"})
WEATHER = natural.call("c1", "get_weather", {"place": "Oslo"})
RESULT = natural.says("tool", "{}", tool_call_id="c1")

ALPACA = {
    "broken_json": lambda row, w: json.dumps(row)[:-9],
    "not_object": lambda row, w: json.dumps([w.prompt()]),
    "half_character": lambda row, w: json.dumps({**row, "output": "ok"}).replace('"ok"', '"a \\ud83d b"'),
    "missing_field": lambda row, w: {k: v for k, v in row.items() if k != "output"},
    "null_field": out(lambda v, w: None),
    "wrong_type": out(lambda v, w: 12),
    "mixed_format": lambda row, w: {"text": w.prose()},
    "empty_answer": out(lambda v, w: " \n"),
    "empty_prompt": lambda row, w: {**row, "instruction": " ", "input": "", "output": w.prose()},
    "answer_is_prompt": lambda row, w: {**row, "input": "", "output": row["instruction"]},
    "placeholder": out(lambda v, w: f"Dear {{{{ first_name }}}}, {w.prose()}"),
    "refusal": out(lambda v, w: f"I'm sorry, but as an AI language model I cannot say. {w.prose()}"),
    "loop": out(lambda v, w: w.sentence() + " and so on it went" * 30 + "."),
    "unfinished": out(lambda v, w: w.prose() + " Most of it was built by the"),
    "code_fence": out(lambda v, w: f"{w.sentence()}\n\n```python\nprint({w.r.randint(1, 99)})\n"),
    "special_token": out(lambda v, w: f"{w.prose()}<|im_end|>"),
    "next_turn": out(lambda v, w: f"{w.prose()}\n\n### Instruction:\n{w.sentence()}"),
    "mojibake": out(lambda v, w: f"{w.prose()} The cafÃ© was closed."),
    "replacement_character": out(lambda v, w: f"{w.prose()} The caf\ufffd was closed."),
    "control_character": out(lambda v, w: f"{w.prose()} The \x0crac was closed."),
    "invisible_character": out(lambda v, w: f"{w.prose()} The ca\u200bfe was closed."),
    "html_entity": out(lambda v, w: f"{w.prose()} It&#39;s said that it&nbsp;closed."),
    "escaped_newline": lambda row, w: {**row, "input": "", "output": f"{w.sentence()}\\n\\n{w.sentence()}"},
    "personal_data": out(lambda v, w: f"{w.prose()} Ask j.kowalski.{w.r.randint(100, 999)}@gmail.com for a seat."),
    "other_language": lambda row, w: {**row, "instruction": f"{w.r.randint(1, 10**6)}. {natural.GERMAN}", "input": "", "output": BRIDGE},
    "very_long": out(lambda v, w: "\n".join(w.prose(9, 9) for _ in range(40))),
    "stray_field": lambda row, w: {**row, "outptu": "x"},
    "type_drift": lambda row, w: {**row, "category": 3},
    "label_typo": lambda row, w: {**row, "category": "open_qqa"},
}  # fmt: skip
MESSAGES = {
    "role_order": lambda row, w: turned(row, asks(w), asks(w), says(w)),
    "no_answer": lambda row, w: turned(row, asks(w)),
    "empty_answer": lambda row, w: turned(row, asks(w), natural.says("assistant", "")),
    "ends_without_answer": lambda row, w: turned(row, asks(w), says(w), asks(w)),
    "bad_value": lambda row, w: turned(row, natural.says("usr", w.prompt()), says(w)),
    "orphan_tool": lambda row, w: turned(row, asks(w), RESULT, says(w), tools=True),
    "unanswered_call": lambda row, w: turned(row, asks(w), calls(WEATHER), asks(w), says(w), tools=True),
    "unknown_tool": lambda row, w: turned(row, asks(w), calls(MISSPELT), RESULT, says(w), tools=True),
    "bad_arguments": lambda row, w: turned(row, asks(w), calls(natural.call("c1", "get_weather", w.r.choice(BAD))), tools=True),
    "no_tools_declared": lambda row, w: turned(row, asks(w), calls(WEATHER), RESULT, says(w)),
    "empty_field": lambda row, w: {"messages": []},
}  # fmt: skip
PREFERENCE = {
    "equal_answers": lambda row, w: {**row, "rejected": row["chosen"]},
    "very_short": lambda row, w: {**row, "chosen": "No"},
    "tied_scores": lambda row, w: {**row, "score_chosen": 5, "score_rejected": 5},
    "empty_answer": lambda row, w: {**row, "chosen": ""},
}
VERDICT = {
    "null_field": lambda row, w: {**row, "label": None},
    "html_entity": lambda row, w: {**row, "completion": f"{row['completion']} It&#39;s late."},
    "empty_prompt": lambda row, w: {**row, "prompt": ""},
}
PLANTS = {"alpaca": ALPACA, "messages": MESSAGES, "preference": PREFERENCE, "verdict": VERDICT}


def again(rows, source, at, name):
    """Return the row at `at` as a later row repeats or contradicts it."""
    row = copy.deepcopy(source)
    if name == "same_prompt":
        row["output"] = "Another answer, which nobody gave before."
    elif name == "conflict":
        row = (
            {**row, "label": not row["label"]}
            if "label" in row
            else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        )
    return row


REPEATS = {
    "alpaca": ("duplicate", "same_prompt"),
    "messages": ("duplicate",),
    "preference": ("conflict", "duplicate"),
    "verdict": ("conflict", "duplicate"),
}


def planted(name, seed, each=2):
    """Return (lines of a file, the set of (row, kind) planted in it): `each` of every kind, never two in a row's place."""
    writer = natural.Writer(seed)
    rows = natural.rows(name, ROWS, writer)
    places = random.Random(seed).sample(range(ROWS // 2, ROWS), each * (len(PLANTS[name]) + len(REPEATS[name])))
    lines, wanted = [json.dumps(row, ensure_ascii=False) for row in rows], set()
    for kind, plant in PLANTS[name].items():
        for _ in range(1 if kind in ("stray_field", "type_drift", "label_typo") else each):
            at = places.pop()
            made = plant(copy.deepcopy(rows[at]), writer)
            lines[at] = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False)
            wanted.add((at + 1, kind))
    for kind in REPEATS[name]:
        for k in range(each):
            at = places.pop()
            lines[at] = json.dumps(again(rows, rows[10 * k + 7 * len(kind)], at, kind))
            wanted.add((at + 1, kind))
    return lines, wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", natural.FORMATS)
def test_a_clean_set_has_no_problem(write, name, seed):
    report = inspect(write(f"{name}.jsonl", natural.rows(name, ROWS, natural.Writer(seed))))
    (source,) = report["sources"]
    assert (source["format"], source["rows"], source["records"]) == (name, ROWS, ROWS)
    assert [(p["row"], p["kind"], p["sample"]) for p in source["problems"]] == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", natural.FORMATS)
def test_every_planted_defect_is_found_and_nothing_else(write, name, seed):
    lines, wanted = planted(name, seed)
    (source,) = inspect(write(f"{name}.jsonl", "\n".join(lines)))["sources"]
    found = [(p["row"], p["kind"]) for p in source["problems"]]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert source["rows"] == ROWS
    assert all(p["message"] and p["remedy"] and p["severity"] == KINDS[p["kind"]].severity for p in source["problems"])


def test_at_least_forty_kinds_are_planted():
    assert len({kind for name, plants in PLANTS.items() for kind in (*plants, *REPEATS[name])}) >= 40


@pytest.mark.parametrize("name", ["alpaca", "messages", "preference"])
def test_the_step_that_a_remedy_names_mends_or_drops_the_row(name):
    asked = {"repair": {"entities": True}, "quality": {"refusals": "drop", "max_chars": 20_000, "min_chars": 10}}
    writer = natural.Writer(5)
    for kind, plant in PLANTS[name].items():
        step = KINDS[kind].step
        if step in asked and kind != "unfinished":  # which has more rules here
            row = plant(natural.rows(name, 1, writer)[0], writer)
            rows = Rows(detect.convert(row, Origin("x", 1), name))
            registry.load("data.steps", step).apply(rows, **asked[step])
            assert [fate.id for fate in rows.fates] == [0], kind


def test_every_remedy_names_a_step_that_there_is():
    steps = set(registry.names("data.steps"))
    assert {k.step for k in KINDS.values() if k.step} <= steps
    assert all(k.title and k.remedy.endswith((".", "}.")) for k in KINDS.values())
