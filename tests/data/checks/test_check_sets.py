"""What only the whole set tells: fields, labels, languages, lengths, repeats."""

import random

import natural
import pytest

from tunesmith.data.checks.duplicates import Duplicates, split_of
from tunesmith.data.checks.found import Found, excerpt, locate
from tunesmith.data.checks.labels import Labels
from tunesmith.data.checks.languages import Languages, language
from tunesmith.data.checks.lengths import Lengths, spread
from tunesmith.data.checks.sample import Sample
from tunesmith.data.checks.schema import Schema


def drift(rows):
    schema, found = Schema(), Found()
    for number, row in enumerate(rows, 1):
        schema.see(number, row)
    schema.end(found, ("text",))
    return [(p["row"], p["field"], p["kind"]) for p in found.problems()], schema.fields()


def test_fields_that_stay_are_told_and_nothing_noted():
    problems, fields = drift(
        [{"text": "a", "n": 1, "note": None if i % 2 else "x"} for i in range(30)]
        + [{"text": "b", "n": 1.5, "note": "y"}] * 9
    )
    assert problems == []
    assert fields == {"text": {"string": 39}, "n": {"number": 39}, "note": {"string": 24, "null": 15}}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda i: {"extra": 1} if i >= 60 else {}, [(61, "extra", "schema_drift")]),
        (lambda i: {"extra": 1} if i < 60 else {}, [(60, "extra", "schema_drift")]),
        (lambda i: {"extra": 1} if i == 70 else {}, [(71, "extra", "stray_field")]),
        (lambda i: {} if i == 70 else {"extra": 1}, [(71, "extra", "absent_field")]),
        (lambda i: {"extra": 1} if i % 2 else {}, []),  # an optional field is no drift
        (lambda i: {"extra": "1" if i == 70 else 1}, [(71, "extra", "type_drift")]),
        (lambda i: {"extra": "1" if i >= 50 else 1}, [(51, "extra", "type_drift")]),
        (lambda i: {"extra": None if i % 9 else 1}, [(None, "extra", "null_column")]),
        (lambda i: {"extra": None if i % 9 == 0 else 1}, []),
        (lambda i: {"extra": None if i == 70 else 1}, [(71, "extra", "absent_field")]),
    ],
)
def test_drift(change, wanted):
    assert drift([{"text": "a", **change(i)} for i in range(100)])[0] == wanted


def test_a_small_set_tells_no_drift():
    assert drift([{"text": "a"}] * 5 + [{"text": "a", "b": 1}])[0] == []


def labelled(*labels):
    return [{"instruction": f"Say {i}.", "output": f"It is {i}.", "category": label} for i, label in enumerate(labels)]


def test_labels_out_of_balance_and_misspelt(over):
    problems = over(Labels(), *labelled(*["positive"] * 189, *["negative"] * 9, "postive", "Positive"))
    assert [(p["row"], p["kind"]) for p in problems] == [
        (None, "label_imbalance"),
        (199, "label_typo"),
        (200, "label_typo"),
    ]
    assert (
        'is "positive" in 94% of the rows (positive 94.5%, negative 4.5%, postive 0.5%, Positive 0.5%)'
        in problems[0]["message"]
    )
    assert problems[1]["message"] == 'the label "postive" occurs 1 time. Did you mean "positive"?'
    assert over(Labels(), *labelled(*["yes"] * 70, *["no"] * 40)) == []
    assert over(Labels(), *labelled(*(f"topic {i}" for i in range(110)))) == []


def test_answers_that_are_labels_are_counted(items):
    labels = Labels()
    for one in items(*({"prompt": f"Is {i} odd?", "completion": "yes" if i % 2 else "no"} for i in range(60))):
        labels.see(one)
    assert labels.counts() == {"answer": {"no": 30, "yes": 30}}


def test_verdicts_are_labels(over):
    rows = [{"prompt": f"Say {i}.", "completion": f"{i}!", "label": i % 20 > 0} for i in range(100)]
    (problem,) = over(Labels(), *rows)
    assert (problem["kind"], problem["field"]) == ("label_imbalance", "verdict")


def test_languages(over):
    assert language(natural.GERMAN) == ("de", pytest.approx(1, abs=0.05))
    assert language("Oslo 12") == ("", 0.0)
    writer = natural.Writer(3)
    english = [{"instruction": writer.prompt(), "output": writer.prose(2, 4)} for _ in range(260)]
    german = {"instruction": "Beschreibe die Mühle.", "output": natural.GERMAN}
    asked = {"instruction": "Tell it in German.", "output": natural.GERMAN}
    languages = Languages()
    problems = over(languages, *english[:240], german, asked, *english[240:])
    assert [(p["row"], p["kind"]) for p in problems] == [(241, "other_language")]
    assert languages.shares()["en"] > 0.95
    assert over(Languages(), *english[:120], *[german] * 60) == []  # two languages of a set are a mix, no fault


def test_lengths_far_from_the_others(over):
    r = random.Random(0)
    rows = [{"prompt": f"Say {i}.", "completion": "word " * r.randint(40, 80) + "end."} for i in range(200)]
    rows[50]["completion"], rows[120]["completion"] = "No.", "word " * 5000 + "end."
    problems = over(Lengths(), *rows)
    assert [(p["row"], p["kind"]) for p in problems] == [(51, "very_short"), (121, "very_long")]


def test_an_answer_without_an_end_mark_where_all_others_have_one(over):
    body = "The mill stands by the river since long ago. It was mended by the people of the village in a warm spring"
    rows = [{"prompt": f"Say {i}.", "completion": f"{body} of {i} days."} for i in range(60)]
    rows[30]["completion"] = body
    assert [(p["row"], p["kind"]) for p in over(Lengths(), *rows)] == [(31, "unfinished")]
    for row in rows[:30]:
        row["completion"] = body
    assert over(Lengths(), *rows) == []  # half of them end so: that is the style of the set


def test_spread_by_hand():
    import numpy as np

    assert spread(np.array([1, 2, 2, 9]), bins=2) == {
        "n": 4, "min": 1, "median": 2.0, "p95": 9, "max": 9, "histogram": {"edges": [1, 3, 10], "counts": [3, 1]},
    }  # fmt: skip
    assert spread(np.array([0, 0]))["histogram"]["counts"] == [2]


def repeats(items, files):
    duplicates, out = Duplicates(), []
    for name, rows in files.items():
        found = Found()
        duplicates.begin(name, found)
        for one in items(*rows):
            duplicates.see(one)
        duplicates.end()
        out += [(name, p["row"], p["kind"]) for p in found.problems()]
    return out


def test_repeats_over_files(items):
    pairs = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(40)]
    again = {"prompt": "Say 3.", "completion": "It is three."}
    assert repeats(items, {"a.jsonl": [*pairs, again, pairs[5]], "b.jsonl": [pairs[7]]}) == [
        ("a.jsonl", 41, "same_prompt"),
        ("a.jsonl", 42, "duplicate"),
        ("b.jsonl", 1, "duplicate"),
    ]
    assert repeats(items, {"train.jsonl": pairs, "test-1.jsonl": [again]}) == [("test-1.jsonl", 1, "leak")]


def test_several_answers_to_most_prompts_are_the_sets_way(items):
    rows = [{"prompt": f"Say {i // 2}.", "completion": f"It is {i}."} for i in range(40)]
    assert repeats(items, {"a.jsonl": rows}) == []


def test_contradictions(items):
    verdict = {"prompt": "Say 1.", "completion": "One.", "label": True}
    pair = {"prompt": "Say 1.", "chosen": "One.", "rejected": "Two."}
    other = {"prompt": "Say 1.", "chosen": "One.", "rejected": "Three."}
    swapped = {"prompt": "Say 1.", "chosen": "Two.", "rejected": "One."}
    assert repeats(items, {"v": [verdict, {**verdict, "label": False}]}) == [("v", 2, "conflict")]
    assert repeats(items, {"p": [pair, other, swapped, pair]}) == [("p", 3, "conflict"), ("p", 4, "duplicate")]


def test_splits_by_name():
    names = {
        "train.jsonl": "train",
        "a/val-0.parquet": "validation",
        "dev.tsv": "validation",
        "test_2.json": "test",
        "data.jsonl": None,
    }
    assert {name: split_of(name) for name in names} == names


def test_a_fair_sample():
    counts = [0] * 100
    sample = Sample(10)
    for i in range(100):
        sample.see(i)
    kept = sample.records()
    assert len(kept) == 10
    assert kept == sorted(kept)
    for start in range(200):  # each of 100 is kept with chance 1/10: 20 +- 4.2 times; drawn anew from other states
        sample = Sample(10)
        sample._random.seed(start)
        for i in range(100):
            sample.see(i)
        for i in sample.records():
            counts[i] += 1
    assert min(counts) > 3
    assert max(counts) < 45
    assert sum(counts[:50]) == pytest.approx(1000, abs=120)


def test_a_sample_of_large_ones_holds_no_more_than_it_has_room_for():
    places = []
    for start in range(60):  # whatever stands where, each is as likely to be kept
        sample = Sample(50, room=100)
        for i in range(200):
            sample.see((i + start) % 200, 10)
        kept = sample.records()
        assert len(kept) == 10
        assert sample.seen == 200
        places += [(k - start) % 200 for k in kept]
    assert len(set(places[:10])) == 10
    small = Sample(50, room=100)
    for i in range(30):
        small.see(i, 3)
    assert small.records() == list(range(30))
    one = Sample(5, room=10)
    one.see("far too large", 1000)
    assert one.records() == ["far too large"]


def test_a_label_that_all_rows_have(over):
    rows = [{"prompt": f"Is it {i}?", "completion": f"It is {i}.", "label": True} for i in range(60)]
    assert [(p["row"], p["field"], p["kind"]) for p in over(Labels(), *rows)] == [(None, "verdict", "label_imbalance")]
    same = labelled(*["poems"] * 60)  # a category may be the same everywhere
    assert over(Labels(), *same) == []


def test_excerpts_and_places():
    assert excerpt("a" * 100, 50, 52, width=10) == "…aaaaaaaaaa…"
    assert excerpt("one\ntwo\x00") == "one two<U+0000>"
    row = {"messages": [{"role": "user", "content": "hello"}, {"content": [{"text": "hello you"}]}], "n": 3}
    assert locate(row, "hello") == "messages[0].content"
    assert locate(row, "llo you") == "messages[1].content[0].text"
    assert locate(row, "Say: hello\nmore", "hello") == "messages[0].content"
    assert locate(row, "zzz") is None
