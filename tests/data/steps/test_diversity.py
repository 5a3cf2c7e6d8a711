"""Diversity: distinct-n, openings and effective clusters by hand; a narrow set shows it."""

import math

import pytest
from copies_planted import Writer, chat

from tunesmith.data.ngrams import words
from tunesmith.data.rows import Rows
from tunesmith.data.steps import diversity
from tunesmith.data.steps.diversity import distinct, effective, opening, openings


def run(records, **options):
    rows = Rows(records)
    facts = diversity.apply(rows, **options)
    assert len(rows) == len(records)
    assert list(rows.fates) == []
    return facts


def test_distinct_by_hand():
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab ba ab, ab
    assert distinct(texts, 3) == 2 / 2  # aba bab; the shorter text has none
    assert distinct([], 1) == 0


def test_effective_number_of_clusters():
    assert effective([5, 5, 5, 0]) == pytest.approx(3)
    assert effective([1, 3]) == pytest.approx(math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))
    assert effective([]) == 0


def test_openings():
    assert opening(words("Write a short poem about the sea.")) == ("write", "short")
    assert opening(words("Explain to me the moon")) == ("explain", "moon")
    assert opening(["why"]) == ("why", "")
    assert opening([]) is None
    assert openings([words(t) for t in ("Write a poem", "Write the poem", "Name it", "")]) == [
        ["write", "poem", 2, 0.6667],
        ["name", "", 1, 0.3333],
    ]


def test_a_narrow_set_is_less_diverse():
    writer = Writer(11)
    wide = [writer.row(i) for i in range(200)]
    one = writer.row(0)
    narrow = [writer.copy(one, i) for i in range(200)]
    of_wide, of_narrow = run(wide)["numbers"], run(narrow)["numbers"]
    for n in (1, 2, 3):
        assert of_narrow[f"distinct_{n}"] < of_wide[f"distinct_{n}"] / 2
    assert of_narrow["mean_nearest_similarity"] > 0.7 > of_wide["mean_nearest_similarity"]


def test_topics_are_found_and_named():
    kinds = {"bread": "bake bread oven flour", "court": "judge court law claim", "goal": "ball goal team match"}
    records = [chat(f"{w} {x} {i}", f"{w} {x}", i) for i in range(30) for w, x in kinds.items()]
    table = run(records, clusters=3)["tables"][0]["rows"]
    assert [row[1] for row in table] == [30, 30, 30]
    assert {next(w for w in kinds if w in row[3].split()) for row in table} == set(kinds)


def test_facts_are_of_a_sample_and_the_same_every_time():
    writer = Writer(12)
    records = [writer.row(i) for i in range(300)]
    first = run(records, sample=100)
    assert first == run(records, sample=100)
    assert first["numbers"]["sampled"] == 100
    assert sum(row[1] for row in first["tables"][0]["rows"]) == 100


def test_few_and_no_rows():
    assert run([chat("a", "b", 1)])["numbers"]["clusters"] == 1
