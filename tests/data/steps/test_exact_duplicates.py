"""Exact duplicates: what counts as the same, which stays, by record and by prompt."""

from dataclasses import replace

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import exact_duplicates
from tunesmith.data.steps.exact_duplicates import key, normalised
from tunesmith.errors import InputError

USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "Since."), ("assistant", "No."))
)
AT = Origin("a.jsonl", 1)
CHAT = Chat([USER, GOOD], [False, True], AT)


def run(records, **options):
    rows = Rows([replace(r, origin=Origin("a.jsonl", i + 1)) for i, r in enumerate(records)])
    rows.step = "exact_duplicates"
    return rows, exact_duplicates.apply(rows, **options)


def test_normalised():
    assert normalised("  Cafe\u0301 \n au  lait ") == "Café au lait"
    assert normalised("A\tB", space=False) == "A\tB"
    assert normalised("STRASSE, ja!", case=True, punctuation=True) == normalised(
        "straße ja", case=True, punctuation=True
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(CHAT, messages=[USER, BAD]),
        replace(CHAT, messages=[{**USER, "role": "system"}, GOOD]),
        replace(CHAT, messages=[USER, {**GOOD, "reasoning_content": "hm"}]),
        replace(
            CHAT,
            messages=[USER, {**GOOD, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}],
        ),
        replace(CHAT, trained=[False, False]),
        replace(CHAT, tools=[{"type": "function", "function": {"name": "f"}}]),
        Text("Why?\nSince.", AT),
        Preference([USER], [[GOOD], [BAD]], AT),
        Verdict([USER], [GOOD], True, AT),
        Verdict([USER], [GOOD], False, AT),
        Prompt([USER], AT),
        Prompt([USER], AT, reference="Since."),
    ],
)
def test_what_a_record_says_makes_another_key(other):
    assert key(other) != key(CHAT)


def test_what_does_not_matter_makes_no_other_key():
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
    one = replace(CHAT, messages=[USER, {**GOOD, "tool_calls": [{"id": "c1", **call}]}], extra={"id": 7})
    two = replace(CHAT, messages=[USER, {**GOOD, "tool_calls": [{"id": "x9", **call}]}], origin=Origin("b.jsonl", 9))
    assert key(one) == key(two)
    assert key(replace(CHAT, messages=[{"content": " Why?\n", "role": "user"}, GOOD])) == key(CHAT)


def test_the_first_stays_and_a_drop_names_it():
    rows, facts = run([CHAT, Text("x", AT), replace(CHAT, messages=[{**USER, "content": "Why? "}, GOOD]), CHAT])
    assert [(f.id, f.action, f.reason, f.facts) for f in rows.fates] == [
        (2, "drop", "repeats a.jsonl, row 1", {"of": 0}),
        (3, "drop", "repeats a.jsonl, row 1", {"of": 0}),
    ]
    assert facts["summary"] == "2 of 4 rows repeat another (1 group)."
    assert facts["numbers"] == {"duplicates": 2, "groups": 1, "largest_group": 3}
    assert facts["tables"][0]["rows"] == [[3, 1]]


def test_options_say_what_counts():
    shouting = replace(CHAT, messages=[{**USER, "content": "WHY"}, {**GOOD, "content": "since!"}])
    assert len(run([CHAT, shouting])[0]) == 2
    assert len(run([CHAT, shouting], ignore_case=True)[0]) == 2
    assert len(run([CHAT, shouting], ignore_case=True, ignore_punctuation=True)[0]) == 1
    spaced = replace(CHAT, messages=[{**USER, "content": "Why? "}, GOOD])
    assert len(run([CHAT, spaced], ignore_space=False)[0]) == 2


def test_by_prompt():
    other = replace(CHAT, messages=[USER, BAD])
    rows, facts = run([CHAT, other, Preference([USER], [[GOOD], [BAD]], AT)], by="prompt")
    assert [(f.id, f.reason) for f in rows.fates] == [
        (1, "repeats the prompt of a.jsonl, row 1"),
        (2, "repeats the prompt of a.jsonl, row 1"),
    ]
    assert "the prompt of another" in facts["summary"]


def test_the_best_by_a_column_stays():
    rows = Rows([replace(CHAT, origin=Origin("a.jsonl", i + 1)) for i in range(4)])
    rows.column("score")[:] = [1, 3, np.nan, 3]
    exact_duplicates.apply(rows, best="score")
    assert np.flatnonzero(rows.alive).tolist() == [1]
    assert {f.facts["of"] for f in rows.fates} == {1}


def test_a_column_nobody_made():
    with pytest.raises(InputError, match='best names the column "score"; earlier steps made: none'):
        run([CHAT], best="score")


def test_rows_that_may_not_be_dropped_stay():
    rows = Rows([CHAT, CHAT], spared=[1])
    exact_duplicates.apply(rows)
    assert len(rows) == 2
    assert [(f.id, f.action) for f in rows.fates] == [(1, "spare")]


def test_real_files(shared):
    from tunesmith.data.sources import load

    records = load([str(shared / "data/preference/llamafactory/dpo_en_demo.json")]).records
    rows = Rows(records)
    exact_duplicates.apply(rows)
    assert [(f.id + 1, f.facts["of"] + 1) for f in rows.fates] == [
        (158, 14),
        (187, 112),
        (231, 85),
        (249, 29),
        (276, 118),
    ]
