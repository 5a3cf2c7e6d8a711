"""Balance: plans by hand, what is dropped and repeated, by every kind of category, whatever the rows' order."""

import random
from collections import Counter

import pytest
from copies_planted import chat

from tunesmith.data.records import Origin, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import balance
from tunesmith.data.steps.balance import Plan, plan
from tunesmith.errors import InputError

SIZES = {"a": 60, "b": 20, "c": 4}


def records():
    return [
        Text(f"{name} {i}", Origin("x.jsonl", i + 1), {"category": name})
        for name, size in SIZES.items()
        for i in range(size)
    ]


def run(given, **options):
    rows = Rows(given)
    rows.step = "balance"
    return rows, balance.apply(rows, **options)


def counted(rows):
    return Counter(r.extra["category"] for _, r in rows)


def test_plans_by_hand():
    assert plan(SIZES, "cap", 10, 4) == {"a": Plan(10, 0), "b": Plan(10, 0), "c": Plan(4, 0)}
    assert plan(SIZES, "reweight", None, 4) == {
        "a": Plan(60, 0),
        "b": Plan(20, 40),
        "c": Plan(4, 12),
    }  # c: four times at most
    assert plan(SIZES, "stratify", None, 100) == {"a": Plan(20, 0), "b": Plan(20, 0), "c": Plan(4, 16)}  # the median


def test_cap_drops():
    rows, facts = run(records(), by="category", most=10)
    assert counted(rows) == {"a": 10, "b": 10, "c": 4}
    assert rows.fates[0].reason == 'category "a" has 60 rows, 10 wanted'
    assert facts["tables"][0]["rows"] == [["a", 60, 10, 0], ["b", 20, 10, 0], ["c", 4, 4, 0]]


def test_reweight_repeats_evenly_and_drops_nothing():
    rows, _ = run(records(), by="category", mode="reweight")
    assert counted(rows) == {"a": 60, "b": 60, "c": 16}
    times = Counter(r.text for _, r in rows if r.extra["category"] == "b")
    assert set(times.values()) == {3}
    added = [f for f in rows.fates if f.action == "add"]
    assert len(added) == 52
    assert all(rows[f.id] == rows[f.facts["from_"][0]] for f in added)
    assert {f.facts["time"] for f in added} == {2, 3, 4}
    assert added[0].reason.endswith('to balance "b"')


def test_stratify_does_both():
    assert counted(run(records(), by="category", mode="stratify", most=12)[0]) == {"a": 12, "b": 12, "c": 12}


def test_the_order_of_the_rows_does_not_decide():
    one, _ = run(records(), by="category", mode="stratify", most=9)
    shuffled = records()
    random.Random(1).shuffle(shuffled)
    two, _ = run(shuffled, by="category", mode="stratify", most=9)
    assert Counter(r.text for _, r in one) == Counter(r.text for _, r in two)
    other, _ = run(records(), by="category", mode="stratify", most=9, seed=1)
    assert Counter(r.text for _, r in one) != Counter(r.text for _, r in other)


def test_by_label_kind_topic_and_columns():
    verdicts = [
        Verdict(
            [{"role": "user", "content": str(i)}], [{"role": "assistant", "content": "x"}], i % 4 == 0, Origin("x", i)
        )
        for i in range(20)
    ]
    rows, _ = run(verdicts, by="label", most=5)
    assert Counter(r.good for _, r in rows) == {True: 5, False: 5}
    labels = [chat(str(i), "spam" if i < 3 else "ham", i) for i in range(30)]
    assert len(run(labels, by="label", most=3)[0]) == 6
    assert len(run([*labels, *records()], by="kind", most=7)[0]) == 14
    topics = [chat(f"{w} {i}", w, i) for w, n in (("bread oven flour", 30), ("judge court law", 10)) for i in range(n)]
    assert len(run(topics, by="topic", most=10, topics=2)[0]) == 20
    rows = Rows(labels)
    rows.column("language")[:] = [1] * 20 + [2] * 10
    balance.apply(rows, by="language", most=4)
    assert len(rows) == 8


def test_rows_without_the_field_are_a_category():
    rows, facts = run([*records(), Text("none", Origin("x", 1))], by="category", most=2)
    assert "(none)" in {row[0] for row in facts["tables"][0]["rows"]}
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "category"}, "needs most"),
        ({"by": "categori", "most": 3}, 'by is "categori", which no row has. Did you mean "category"?'),
        ({"by": "language", "most": 3}, "which the step language finds out; switch it on"),
        ({"by": "label", "most": 3}, "has 84 values in 84 rows; that is no category"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(InputError) as error:
        run(records(), **options)
    assert said in str(error.value)
