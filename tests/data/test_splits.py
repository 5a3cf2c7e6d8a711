"""The split's size, its determinism, and that no prompt stands on both sides."""

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.splits import from_files, prompt_key, split
from tunesmith.errors import InputError


def texts(n, same=0):
    """n texts, the first `same` of them equal."""
    return [Text("same" if i < same else f"t{i}", Origin("d", i + 1)) for i in range(n)]


@pytest.mark.parametrize(("rows", "held"), [(2, 1), (19, 1), (100, 5), (1000, 50), (20_000, 500)])
def test_the_default(rows, held):
    train, validation, sentence = split(texts(rows))
    assert (len(train), len(validation)) == (rows - held, held)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(rows))
    assert sentence.startswith(f"validation: {held:,} of {rows:,} rows held out (the default: 5%, at most 500")


def test_a_stated_fraction_has_no_cap():
    _, validation, sentence = split(texts(20_000), {"fraction": 0.1})
    assert len(validation) == 2000
    assert "0.1 of them, as stated" in sentence


def test_the_seed_decides():
    a, b, c = (split(texts(1000), None, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_equal_prompts_stay_together():
    records = [
        Chat(
            [{"role": "user", "content": f"q{i // 3}"}, {"role": "assistant", "content": f"a{i}"}],
            [False, True],
            Origin("d", i),
        )
        for i in range(300)
    ]
    train, validation, _ = split(records, {"fraction": 0.1}, 3)
    assert len(validation) == 30
    assert not {prompt_key(records[i]) for i in train} & {prompt_key(records[i]) for i in validation}


def test_a_large_group_is_passed_by():
    for seed in range(5):
        train, validation, _ = split(texts(100, same=60), None, seed)
        assert len(validation) == 5
        assert set(range(60)) <= set(train.tolist())


def test_one_prompt_leaves_nothing_to_hold_out():
    train, validation, sentence = split(texts(8, same=8))
    assert (len(train), len(validation)) == (8, 0)
    assert "nothing to hold out" in sentence
    assert len(split(texts(1))[0]) == 1


def test_none():
    train, validation, sentence = split(texts(10), False)
    assert (len(train), len(validation)) == (10, 0)
    assert sentence == "validation: none (validation is false)"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"fraktion": 0.1}, 'Did you mean "fraction"'),
        ({"fraction": 5}, "validation.fraction is 5, expected a number between 0 and 1"),
        ({"fraction": True}, "validation.fraction is True"),
        (0.1, "validation is 0.1, expected"),
    ],
)
def test_wrong_values(value, sentence):
    with pytest.raises(InputError) as e:
        split(texts(10), value)
    assert sentence in str(e.value)


def test_a_file_of_its_own_and_its_leak(write):
    path = write("val.jsonl", [{"text": "t1"}, {"text": "new"}])
    loaded, sentence = from_files(texts(5), {"path": path})
    assert [r.text for r in loaded.records] == ["t1", "new"]
    assert sentence == f"validation: the 2 rows of {path}; 1 of their prompts are in the training data too"
