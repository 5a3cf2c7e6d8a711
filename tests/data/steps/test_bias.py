"""Bias: counterfactuals word by word, counts by hand, and the association's formula."""

import csv
import math
import re

import pytest

from tunesmith.data import lexicon
from tunesmith.data.lexicon.counterfactual import DIMENSIONS, counterfactual
from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.rows import Rows
from tunesmith.data.steps import bias, toxicity


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("She told her son.", "He told his daughter."),
        ("He told her that she knew him.", "She told him that he knew her."),
        ("her book is hers", "his book is his"),
        ("The book is his. His book.", "The book is hers. Her book."),
        ("I saw her.", "I saw him."),
        ("gave her a hug", "gave him a hug"),
        ("helped her carry it", "helped him carry it"),
        ("drove her home", "drove him home"),
        ("greeted her warmly", "greeted him warmly"),
        ("HER MOTHER", "HIS FATHER"),
        ("Mary and John", "John and Mary"),
        ("the mark on the jack", "the mark on the jack"),
        ("Mr. Smith's wife", "Mrs. Smith's husband"),
        ("Sheila theorises; where is the other?", "Sheila theorises; where is the other?"),
        ("  tabs\tand «he»\r\n", "  tabs\tand «she»\r\n"),
    ],
)
def test_counterfactual(text, other):
    assert counterfactual(text) == other


def test_twice_is_the_text_where_no_pronoun_is_of_two_minds():
    for text in ("He and his mother met her father.", "Mary saw him.", "The queen is a lady; the boys told the girl."):
        assert counterfactual(counterfactual(text)) == text


def test_other_dimensions_only_when_asked():
    text = "A young Christian man"
    assert counterfactual(text) == "A young Christian woman"
    assert counterfactual(text, ["religion"]) == "A young Muslim man"
    assert counterfactual(text, DIMENSIONS) == "An old Muslim woman"
    assert counterfactual("nothing to swap", ["religion"]) == "nothing to swap"


def test_the_lists_are_sound():
    for dimension in DIMENSIONS:
        pairs = lexicon.swaps((dimension,))
        assert pairs
        assert all(key == key.lower() and other in pairs for key, (other, _) in pairs.items())
    terms = [t for _, _, *listed in lexicon.lines("identity") for t in listed]
    assert len(terms) == len(set(terms)), sorted(t for t in set(terms) if terms.count(t) > 1)


def test_groups_by_hand():
    assert bias.groups_in(["the", "black", "women", "and", "a", "boy"]) == {
        ("ethnicity", "black"),
        ("gender", "female"),
        ("gender", "male"),
    }
    assert bias.groups_in(["a", "black", "cat"]) == set()


def test_association_by_hand():
    """4 of 8 sentences with the group have the topic, 10 of 40 overall: log2(0.5 / 0.25) = 1 bit; Wilson gives its ends."""
    pmi, low, high = bias.association(4, 8, 10, 40)
    assert pmi == pytest.approx(1.0)
    z2 = 1.959963984540054**2
    half = math.sqrt(z2 * 0.25 / 8 + z2 * z2 / (4 * 64))
    ends = [(0.5 + z2 / 16 + s * half) / (1 + z2 / 8) for s in (-1, 1)]
    assert [low, high] == pytest.approx([math.log2(e / 0.25) for e in ends])
    assert bias.association(0, 8, 10, 40)[:2] == (-math.inf, -math.inf)


def text(said, row):
    return Text(said, Origin("x.jsonl", row))


def test_the_step_counts_rows_and_company():
    records = [
        text("She is kind. She is lazy.", 1),
        text("He is kind! The nurse met her.", 2),
        text("A plain row.", 3),
        text("He is here\nhe is there", 4),
    ]
    facts = bias.apply(Rows(records))
    assert facts["numbers"] == {"rows": 4, "rows_naming_women": 2, "rows_naming_men": 2, "women_per_man": 1.0}
    assert facts["tables"][0]["rows"][0][:5] == ["gender", "female", 2, 0.5, 0.5]
    tally = bias.Tally()
    for record in records:
        tally.add(record, None)
    assert tally.sentences == 7
    assert tally.groups[("gender", "male")] == 3
    assert tally.both[("gender", "female"), "negative"] == 1
    assert tally.both[("gender", "female"), "profession:nurse"] == 1


def test_the_company_of_many_sentences():
    records = [text("The nurse and her friend.", i) for i in range(9)] + [
        text("The nurse and his friend.", 10),
        text("A dog.", 11),
    ]
    table = next(t for t in bias.apply(Rows(records))["tables"] if t["title"].startswith("Professions"))
    assert table["rows"][0][:5] == ["nurse", 10, 9, 1, 0.9]


def test_toxicity_of_groups():
    rows = Rows([text("she is a moron", i) for i in range(40)] + [text("he is fine", i) for i in range(40)])
    toxicity.apply(rows)
    table = bias.apply(rows)["tables"][-1]
    assert table["rows"][0][:5] == ["gender", "female", 40, 0.2, 0.0]
    assert table["rows"][0][5] == "0.2000 to 0.2000"


def test_augment_adds_the_counterfactual_of_whole_rows():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"who": "she"}}}
    turns = [
        {"role": "user", "content": "Is she in?"},
        {"role": "assistant", "content": "She is.", "tool_calls": [call]},
    ]
    rows = Rows([Chat(turns, [False, True], Origin("x.jsonl", 1)), text("nobody", 2)])
    rows.step = "bias"
    facts = bias.apply(rows, augment=True)
    assert len(rows) == 3
    made = rows[2]
    assert [m["content"] for m in made.messages] == ["Is he in?", "He is."]
    assert made.messages[1]["tool_calls"] == [call]
    assert made.extra["provenance"] == {"method": "counterfactual", "from": "x.jsonl, row 1"}
    fate = next(iter(rows.fates))
    assert (fate.action, fate.facts["from_"]) == ("add", [0])
    assert facts["numbers"]["counterfactuals"] == 1


def test_augment_ends_though_rows_grow():
    rows = Rows([text("she", i) for i in range(10)])
    bias.apply(rows, augment=True)
    assert len(rows) == 20


@pytest.mark.parametrize("kind", ["type1", "type2"])
def test_winobias(shared, kind):
    """Swapping the pro-stereotyped sentences gives the anti-stereotyped ones, nearly always."""
    folder = shared / "data" / "eval" / "winobias"
    if not folder.is_dir():
        pytest.skip("needs the shared data")

    def sentences(name):
        return [re.sub(r"^\d+ |[\[\]]", "", line).strip() for line in (folder / name).read_text().splitlines()]

    pro = [s for part in ("dev", "test") for s in sentences(f"pro_stereotyped_{kind}.txt.{part}")]
    anti = {s for part in ("dev", "test") for s in sentences(f"anti_stereotyped_{kind}.txt.{part}")}
    assert sum(counterfactual(s) in anti for s in pro) / len(pro) >= 0.93


def test_crows_pairs(shared):
    """Its pairs change one term of a sentence, ours change all; a quarter of the gender pairs come out the same."""
    file = shared / "data" / "eval" / "crows_pairs" / "crows_pairs_anonymized.csv"
    if not file.is_file():
        pytest.skip("needs the shared data")
    with file.open(newline="", encoding="utf-8") as f:
        rows = [r for r in csv.DictReader(f) if r["bias_type"] == "gender"]
    assert sum(counterfactual(r["sent_more"]) == r["sent_less"] for r in rows) / len(rows) > 0.25
    assert sum(counterfactual(r["sent_more"]) != r["sent_more"] for r in rows) / len(rows) > 0.85
