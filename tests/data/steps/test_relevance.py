"""Relevance: rows like the examples come first, and share and threshold drop what they say."""

import numpy as np
import pytest

from tunesmith.data.records import Origin, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import relevance
from tunesmith.errors import InputError

COOKING = [
    "bake the bread in a hot oven with salt",
    "boil rice with butter and salt",
    "fry onions in butter for the soup",
]
LAW = ["the court of appeal read the contract", "a judge may void the contract", "the lawyer filed a claim in court"]


def run(**options):
    rows = Rows([Text(t, Origin("x.jsonl", i + 1)) for i, t in enumerate([*COOKING, *LAW])])
    rows.step = "relevance"
    return rows, relevance.apply(rows, **options)


def test_a_description_ranks_rows():
    rows, facts = run(like="recipes: soup, bread, rice, butter and salt from the oven")
    values = rows.columns["relevance"]
    assert values[:3].min() > values[3:].max()
    assert len(rows) == 6
    assert sum(facts["histograms"][0]["counts"]) == 6


def test_examples_from_a_file(write):
    rows, facts = run(
        examples=[write("wanted.jsonl", [{"text": "the judge and the court"}, {"text": "a contract"}])], keep=0.5
    )
    assert [f.id for f in rows.fates] == [0, 1, 2]
    assert all(f.reason.endswith("not among the nearest 50%") for f in rows.fates)
    assert facts["numbers"]["examples"] == 2


def test_a_threshold():
    rows, _ = run(like="bake bread", threshold=0.2)
    assert np.flatnonzero(rows.alive).tolist() == [0]
    assert rows.fates[0].reason == "relevance 0.000, at least 0.2 wanted"


def test_the_same_text_is_as_relevant_as_can_be():
    rows, _ = run(like=LAW[0])
    assert rows.columns["relevance"][3] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs what rows are to be relevant to"),
        ({"like": " "}, "needs what rows are to be relevant to"),
        ({"like": "x", "keep": 0.5, "threshold": 0.1}, "give one"),
        ({"examples": ["nowhere.jsonl"]}, "there is no data file"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(InputError, match=said):
        relevance.check(**options)
