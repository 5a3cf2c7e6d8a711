"""Near duplicates: recall and precision on planted copies beside look-alikes, what is kept, clusters, and the rows' order."""

import random
from dataclasses import replace

import numpy as np
import pytest
from copies_planted import Writer, chat

from tunesmith.data import minhash
from tunesmith.data.copies import said, similarity
from tunesmith.data.records import Chat, Origin, Preference, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import near_duplicates


@pytest.fixture(scope="module")
def planted():
    """(records, {number of a copy: number of its original}); the others are no copies of anything."""
    writer = Writer(1)
    base = [writer.row(i) for i in range(1000)]
    records = base + writer.lookalikes()
    of = {}
    for original in writer.r.sample(range(len(base)), 400):
        of[len(records)] = original
        records.append(writer.copy(base[original], 0))
    return [replace(r, origin=Origin("planted.jsonl", i + 1)) for i, r in enumerate(records)], of


def run(records, **options):
    rows = Rows(records)
    rows.step = "near_duplicates"
    facts = near_duplicates.apply(rows, **options)
    return rows, facts, {f.id: f for f in rows.fates}


@pytest.fixture(scope="module")
def done(planted):
    return run(planted[0])


def test_recall_and_precision_on_planted_copies(planted, done):
    (records, of), (rows, facts, fates) = planted, done
    right = [id_ for id_, original in of.items() if id_ in fates and fates[id_].facts["of"] == original]
    recall, precision = len(right) / len(of), len(right) / len(fates)
    print(f"\nnear duplicates: {len(of)} planted among {len(records)}, recall {recall:.3f}, precision {precision:.3f}")
    assert recall >= 0.95
    assert precision >= 0.95
    assert facts["numbers"]["near_duplicates"] == len(fates) == len(records) - len(rows)
    assert sum(facts["histograms"][0]["counts"]) == len(fates)


def test_every_drop_names_a_kept_row_as_similar_as_it_says(planted, done):
    (records, _), (rows, _, fates) = planted, done
    for fate in fates.values():
        kept = fate.facts["of"]
        assert rows.alive[kept]
        assert fate.reason == f"nearly repeats {records[kept].origin}"
        assert 0.55 <= fate.facts["similarity"] <= 1


def test_the_order_of_the_rows_decides_only_which_copy_stays(planted, done):
    records, _ = planted
    order = list(range(len(records)))
    random.Random(3).shuffle(order)
    one, (two, _, _) = done[0], run([records[i] for i in order])
    back = {i: at for at, i in enumerate(order)}

    def groups(column, place):
        found = {}
        for i in range(len(records)):
            found.setdefault(column[place(i)], set()).add(i)
        return {frozenset(g) for g in found.values()}

    assert groups(one.columns["cluster"], lambda i: i) == groups(two.columns["cluster"], back.__getitem__)


def test_the_same_call_gives_the_same_fates(planted):
    records, _ = planted
    assert run(records[:500])[2] == run(records[:500])[2]


def test_keep_all_marks_and_keep_longest_keeps_the_longest():
    writer = Writer(2)
    row = writer.row(1)
    longer = chat(row.messages[0]["content"], row.messages[1]["content"] + " " + " ".join(writer.content(2)), 2)
    rows, facts, _ = run([row, longer, writer.row(3)], keep="all")
    assert len(rows) == 3
    assert rows.columns["cluster"].tolist() == [0, 0, 2]
    assert facts["numbers"]["near_duplicates"] == 1
    rows, _, fates = run([row, longer, writer.row(3)], keep="longest")
    assert list(fates) == [0]
    assert fates[0].facts["of"] == 1
    assert rows.columns["cluster"].tolist() == [0, 0, 2]


def test_a_copy_of_a_copy_that_is_no_copy_of_the_kept_row_stays():
    words = [f"w{i}x" for i in range(100)]
    a, b, c = (Text(" ".join(words[at : at + 60]), Origin("x", at)) for at in (0, 14, 28))
    rows, _, fates = run([a, b, c])
    assert similarity(said(a), said(c)) < 0.55 < similarity(said(a), said(b))
    assert list(fates) == [1]
    assert rows.columns["cluster"].tolist() == [0, 0, 0]  # yet the split keeps all three on one side


def test_chinese_and_japanese_without_spaces():
    a = "水是生命之源，人类离不开水，我们应当节约每一滴水，保护河流和湖泊，让子孙后代也能喝到干净的水。"
    b = a.replace("应当", "必须").replace("干净", "清洁")
    c = "机器学习是人工智能的一个分支，它研究如何让计算机从数据中学习规律，并用这些规律预测未来的事情。"
    _, _, fates = run([Text(t, Origin("x", i)) for i, t in enumerate((a, b, c))])
    assert list(fates) == [1]


def test_rows_of_one_prompt_with_brief_other_answers_are_no_copies():
    prompt = (
        "Is the river that runs through the old town on the map longer than the one behind the hill? Answer yes or no."
    )
    assert run([chat(prompt, "Yes, it is longer.", 1), chat(prompt, "No, it is not longer.", 2)])[2] == {}


def test_a_preference_with_another_rejected_answer_is_no_copy():
    writer = Writer(4)
    prompt, good, bad, other = ([{"role": "user", "content": writer.text(40)}] for _ in range(4))
    one, two = (Preference(prompt, [good, x], Origin("x", i)) for i, x in enumerate((bad, other)))
    assert run([one, two])[2] == {}


def test_a_branch_of_a_tree_is_no_copy_of_another():
    writer = Writer(5)
    shared = [(writer.text(60), writer.text(60)), (writer.text(30), writer.text(80))]
    records = []
    for i in range(2):
        pairs = [*shared, (writer.text(10), writer.text(40))]
        turns = [{"role": r, "content": t} for pair in pairs for r, t in zip(("user", "assistant"), pair, strict=True)]
        records.append(replace(chat("", "", i), messages=turns, trained=[False, True] * 3))
    assert run(records)[2] == {}


def test_rows_without_words_and_an_empty_set():
    _, facts, fates = run([Text("🙂", Origin("x", 1)), Text("🙃", Origin("x", 2)), Text("", Origin("x", 3))])
    assert fates == {}
    assert facts["numbers"] == {"near_duplicates": 0, "groups": 0, "largest_group": 0}
    assert run([])[1]["numbers"]["groups"] == 0


def test_minhash_estimates_jaccard():
    a, b = [f"t{i}" for i in range(300)], [f"t{i}" for i in range(100, 400)]  # 200 of 400: J = 0.5
    sketch = minhash.signatures([a, b], 2)
    assert (sketch[0] == sketch[1]).mean() == pytest.approx(0.5, abs=4 * (0.25 / 128) ** 0.5)


def test_bands_meet_pairs_at_the_threshold():
    assert minhash.rows_per_band(0.55) == 3  # 1 - (1 - 0.55^3)^42 = 0.9995; four slots: 0.953
    assert minhash.rows_per_band(0.9) == 11  # 1 - (1 - 0.9^11)^11 = 0.984; twelve: 0.964


def test_candidates_of_a_set_of_one_template_grow_with_its_rows_only():
    words = [[f"t{i}" for i in range(50)] + [f"own{n}"] for n in range(2000)]
    pairs, _ = minhash.candidates(minhash.signatures(words, 2000), 0.55)
    assert len(pairs) <= 2000 * minhash.NEAREST  # of 2,000,000 pairs
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_clusters():
    clusters = minhash.Clusters()
    for a, b in [(5, 3), (9, 5), (7, 8)]:
        clusters.join(a, b)
    assert [clusters.of(i) for i in (3, 5, 9, 7, 8, 1)] == [3, 3, 3, 7, 7, 1]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("As brave as a tiger.", "As brave as a tigr.", True),
        ("As brave as a tiger.", "As brave as a tigre.", True),
        ("As brave as a tiger.", "As brave as a tigger.", True),
        ("As brave as a tiger.", "As brave as a tigers.", False),
        ("It is the right price here.", "It is the right prize here.", False),
        ("It is the moral thing.", "It is the amoral thing.", False),
        ("An apple.", "An aple.", False),
        ("Take 1250 steps to it.", "Take 1520 steps to it.", False),
    ],
)
def test_a_slip_of_the_pen_in_a_brief_answer_is_no_other_answer(a, b, same):
    records = [chat("Compare it with an animal that everybody knows, please.", x, 1) for x in (a, b)]
    value = similarity(said(records[0]), said(records[1]))
    assert (value > 0) == same


def test_a_decimal_is_one_number():
    sums = [chat(f"Convert {f} degrees Fahrenheit to Celsius.", f"Subtract 32, multiply by 5/9: {f} is {c} degrees.", 1) for f, c in
            ((122, "50.0"), (50, "10.0"))]  # fmt: skip
    assert similarity(said(sums[0]), said(sums[1])) == 0


def test_records_of_two_kinds_or_verdicts_are_no_copies_of_each_other():
    asked = [
        {"role": "user", "content": "Tell me how the old mill by the river came to be built, and who paid for it then."}
    ]
    answer = [
        {
            "role": "assistant",
            "content": "Two brothers built the old mill in the last years of the war, and the town paid for it.",
        }
    ]
    origin = Origin("log.jsonl", 1)
    chat = Chat(asked + answer, [False, True], origin)
    good, bad = Verdict(asked, answer, True, origin), Verdict(asked, answer, False, origin)
    rows = Rows([chat, good, bad, good])
    near_duplicates.apply(rows)
    assert [id_ for id_, _ in rows] == [0, 1, 2]
