"""The step split: shares met to a group, nothing that belongs together parted, and the same for the same rows."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Record, Text, Verdict
from tunesmith.data.rows import Rows
from tunesmith.data.steps import split
from tunesmith.errors import InputError


def text(i: int, **extra) -> Text:
    return Text(f"text {i}", Origin("a.jsonl", i + 1), extra)


def chat(question: str, answer: str, row: int, part: int = 0, **extra) -> Chat:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Chat(messages, [False, True], Origin("a.jsonl", row, part), extra=extra)


def sides(records: list[Record], rows: Rows | None = None, **options) -> list[str | None]:
    """The split of each record, None of those that were dropped."""
    rows = rows or Rows(records)
    split.apply(rows, **options)
    column = rows.columns["split"]
    return [split.NAMES[int(column[i])] if rows.alive[i] else None for i in range(len(rows.alive))]


@pytest.mark.parametrize(
    ("n", "train", "validation", "test"), [(100, 90, 5, 5), (1000, 900, 50, 50), (20_000, 19_000, 500, 500), (3, 1, 1, 1), (2, 2, 0, 0)]
)  # fmt: skip
def test_the_default_is_90_5_5_at_most_500_each(n, train, validation, test):
    wanted = {"train": train, "validation": validation, "test": test}
    assert Counter(sides([text(i) for i in range(n)])) == Counter({k: v for k, v in wanted.items() if v})


def test_shares_counts_and_none():
    records = [text(i) for i in range(200)]
    assert Counter(sides(records, validation=0.25, test=0)) == {"train": 150, "validation": 50}
    assert Counter(sides(records, validation=30, test=0.1)) == {"train": 150, "validation": 30, "test": 20}
    assert Counter(sides(records, validation=0, test=0)) == {"train": 200}


def test_rows_that_no_split_asks_for_are_dropped_with_the_reason():
    rows = Rows([text(i) for i in range(200)])
    found = sides([], rows, train=0.5, validation=0.1, test=0.1)
    assert Counter(found) == {"train": 100, "validation": 20, "test": 20, None: 60}
    gone = found.index(None)
    assert [f.reason for f in rows.history(gone)] == ["left over: 100 rows were asked for to train on"]
    assert Counter(sides([text(i) for i in range(200)], train=12))["train"] == 12


def test_shares_are_off_by_at_most_one_group():
    """Groups of 1 to 9 rows of one prompt; every split's size is below what was asked for by less than the largest group."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 10, 60)
        records = [chat(f"q{g}", f"a{i}", 10 * g + i) for g, size in enumerate(sizes.tolist()) for i in range(size)]
        found = sides(records, validation=0.2, test=0.1, seed=seed)
        of_prompt = defaultdict(set)
        for record, side in zip(records, found, strict=True):
            of_prompt[record.messages[0]["content"]].add(side)
        assert all(len(s) == 1 for s in of_prompt.values())
        counts = Counter(found)
        for name, share in (("validation", 0.2), ("test", 0.1)):
            assert 0 <= round(share * len(records)) - counts[name] < 9


def test_the_same_rows_give_the_same_splits_in_any_order_and_another_seed_others():
    records = [text(i) for i in range(500)]
    found = sides(records)
    assert sides(records) == found
    assert sides(records[::-1]) == found[::-1]
    assert sides(records, seed=1) != found


def test_rows_added_later_move_no_more_old_ones_than_the_shares_demand():
    """A share of 10% of 1,000 rows is 100, of 1,100 it is 110: of the old test rows those few leave that new ones displace."""
    old = [text(i) for i in range(1000)]
    before = sides(old, validation=0.1, test=0.1)
    after = sides([*old, *(text(i) for i in range(1000, 1100))], validation=0.1, test=0.1)
    moved = sum(a != b for a, b in zip(before, after, strict=False))
    assert Counter(after) == {"train": 880, "validation": 110, "test": 110}
    assert moved <= 20  # of 1,000; drawn anew, about 330 would have moved


def test_every_stratum_has_its_share_by_largest_remainders():
    records = [text(i, topic="a" if i < 30 else "b") for i in range(40)]
    found = sides(records, test=0.1, validation=0.2, stratify="topic")
    counts = Counter((r.extra["topic"], side) for r, side in zip(records, found, strict=True))
    # test: 4 rows, 30/40 and 10/40 of them; validation: 8 of the 36 that are left, 27 a and 9 b
    assert counts == {
        ("a", "test"): 3, ("b", "test"): 1, ("a", "validation"): 6, ("b", "validation"): 2, ("a", "train"): 21, ("b", "train"): 7,
    }  # fmt: skip
    records = [text(i, topic="a" if i < 7 else "b") for i in range(10)]
    found = sides(records, test=5, validation=0, stratify="topic")
    held = Counter(r.extra["topic"] for r, side in zip(records, found, strict=True) if side == "test")
    assert held == {"a": 4, "b": 1}  # 3.5 and 1.5: the first of equal remainders


def test_labels_to_stratify_by():
    """A field of that name, the verdict, or the answer of a classification."""
    answers = [chat(f"q{i}", "yes" if i % 4 else "no", i) for i in range(40)]
    verdicts = [Verdict(answers[i].messages[:1], answers[i].messages[1:], i % 4 > 0, Origin("a", i)) for i in range(40)]
    labelled = [text(i, label=i % 4 > 0) for i in range(40)]
    for records in (answers, verdicts, labelled):
        found = sides(records, test=0.2, validation=0, stratify="label")
        held = [i for i, side in enumerate(found) if side == "test"]
        assert Counter(i % 4 > 0 for i in held) == {True: 6, False: 2}


def test_rows_that_belong_together_are_on_one_side():
    """By prompt, by row of the file, by cluster, by a field, by what they were made from, and by way of another."""
    records = [chat(f"q{i}", f"a{i}", i) for i in range(60)]
    records[1] = chat("q0", "another", 1)  # the prompt of 0
    records[3] = chat("q3", "a3", 2, part=1)  # of the same row as 2
    records[10] = chat("q10", "a10", 10, user="x")
    records[11] = chat("q11", "a11", 11, user="x")
    for seed in range(30):
        rows = Rows(records)
        rows.column("cluster")[[4, 5]] = 4
        rows.column("cluster")[[5, 3]] = 4  # so 2, 3, 4 and 5 belong together
        made = rows.add(chat("q6 in other words", "a6", 6), "a variation", from_=[6])
        found = sides([], rows, validation=0.2, test=0.2, group_by="user", seed=seed)
        assert found[0] == found[1]
        assert found[2] == found[3] == found[4] == found[5]
        assert found[10] == found[11]
        assert found[made] == found[6]


def test_examples_that_were_shown_do_not_tie_rows_together():
    """Forty rows made from the same three: all in one group, nothing could be held out."""
    rows = Rows([text(i) for i in range(3)])
    for i in range(3, 43):
        rows.add(text(i), "self-instruct", from_=[0, 1, 2])
    assert Counter(sides([], rows, validation=0.25, test=0)) == {"train": 32, "validation": 11}


def test_a_row_whose_original_is_gone_still_stands_with_the_others_made_from_it():
    for seed in range(20):
        rows = Rows([text(i) for i in range(30)])
        made = [rows.add(text(100 + i), "a variation", from_=[4]) for i in range(3)]
        rows.drop(4, "broken")
        found = sides([], rows, validation=0.3, test=0, seed=seed)
        assert found[4] is None
        assert len({found[i] for i in made}) == 1


def test_folds_validate_every_row_once_and_are_of_one_size():
    rows = Rows([chat(f"q{i // 3}", f"a{i}", i, topic="a" if i < 60 else "b") for i in range(99)])
    facts = split.apply(rows, folds=5, stratify="topic")
    fold, side = rows.columns["fold"], rows.columns["split"]
    assert set(side.tolist()) == {0.0}
    sizes = np.bincount(fold.astype(int), minlength=5)
    assert sizes.sum() == 99
    assert sizes.max() - sizes.min() <= 3  # a group's size
    assert all(len(set(fold[i : i + 3].tolist())) == 1 for i in range(0, 99, 3))
    assert np.bincount(fold[:60].astype(int)).tolist() == [12] * 5  # 20 groups of 3 in 5 folds
    assert [row[1] for row in facts["tables"][0]["rows"]] == sizes.tolist()
    assert facts["summary"] == "99 train, in 5 folds of 18 to 21 (33 groups of what stays together)"


def test_folds_beside_a_test_set():
    rows = Rows([text(i) for i in range(100)])
    split.apply(rows, folds=4, test=0.2)
    held = rows.columns["split"] == 2
    assert held.sum() == 20
    assert np.isnan(rows.columns["fold"][held]).all()
    assert np.bincount(rows.columns["fold"][~held].astype(int)).tolist() == [20] * 4


def test_none_to_train_on_where_that_is_asked_for():
    found = sides([text(i) for i in range(20)], train=0, validation=0.5, test=0.5)
    assert Counter(found) == {"validation": 10, "test": 10}


def test_one_group_goes_to_training():
    assert set(sides([chat("q", f"a{i}", i) for i in range(20)], validation=0.2)) == {"train"}


def test_dropped_rows_are_left_alone():
    rows = Rows([text(i) for i in range(100)])
    for i in range(50):
        rows.drop(i, "gone")
    assert Counter(sides([], rows, validation=0.2, test=0)) == {None: 50, "train": 40, "validation": 10}
    assert np.isnan(rows.columns["split"][:50]).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": 0.6, "test": 0.5}, "split: train, validation and test are 1.1 of the rows together"),
        ({"test": 2.5}, "split.test is 2.5, expected a share below 1 or a whole number of rows."),
        ({"folds": 5, "validation": 0.1}, "split.folds validates on each part in turn; take split.validation away."),
        ({"folds": 80}, "split.folds is 80, but the rows make only 60 groups that may be parted; ask for fewer."),
        ({"folds": 40, "test": 0.5}, "split.folds is 40, but the rows make only 30 groups that may be parted"),
        (
            {"validation": 59, "test": 1},
            "split: validation and test take 60 of 60 rows, which leaves none to train on;",
        ),
        ({"validation": 500}, "take 503 of 60 rows, which leaves none to train on; ask for fewer."),
        ({"group_by": "usr"}, 'split.group_by names "usr", a field that no row has. Did you mean "user"?'),
        ({"stratify": "topik"}, 'split.stratify names "topik", a field that no row has.'),
        ({"stratify": "user"}, 'split.stratify: "user" has 60 different values in 60 rows; give a field with few.'),
    ],
)
def test_what_cannot_be_is_refused(options, sentence):
    with pytest.raises(InputError) as e:
        split.apply(Rows([text(i, user=f"u{i}") for i in range(60)]), **options)
    assert sentence in str(e.value)


def test_the_facts_count_what_was_split():
    facts = split.apply(
        Rows([text(i, topic="ab"[i % 2]) for i in range(40)]), validation=0.25, test=0, stratify="topic"
    )
    assert facts["numbers"] == {"train": 30, "validation": 10, "groups": 40}
    assert facts["tables"] == [
        {
            "title": "Splits by topic",
            "columns": ["topic", "train", "validation", "test"],
            "rows": [["a", 15, 5, 0], ["b", 15, 5, 0]],
        }
    ]
