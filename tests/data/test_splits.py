"""The split's size, its determinism, and that no prompt stands on both sides."""

import numpy as np
import pytest

from tunesmith.data.records import Chat, Origin, Text
from tunesmith.data.splits import NONE, from_files, hashed, prompt_hash, prompt_key, scrambled, split, take, united
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


def chat(*turns: str) -> Chat:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": roles[t[0]], "content": t[2:]} for t in turns]
    return Chat(messages, [m["role"] == "assistant" for m in messages], Origin("d", 1))


def test_what_two_records_share_that_are_one_prompt():
    assert prompt_hash(chat("s:x", "u:q", "a:1")) == prompt_hash(chat("s:x", "u:q", "a:2", "u:more", "a:3"))
    assert prompt_hash(chat("u:q", "a:1")) != prompt_hash(chat("s:x", "u:q", "a:1"))
    assert prompt_hash(chat("u:ab", "u:c", "a:1")) != prompt_hash(chat("u:a", "u:bc", "a:1"))
    assert prompt_key(chat("s:x", "a:1")) != prompt_key(chat("s:x", "a:2"))  # nobody asked: each is its own
    assert prompt_key(chat("s:x", "a:1")) == prompt_key(chat("s:x", "a:1"))


def test_hashes_are_signed_64_bits_and_never_the_sign_of_none():
    found = [hashed(str(i)) for i in range(1000)]
    assert len(set(found)) == 1000
    assert min(found) < 0 < max(found)
    assert all(NONE < h < 2**63 for h in found)


def test_rows_are_united_by_any_key_also_by_way_of_others():
    first = np.array([1, 1, 2, 2, NONE, NONE, 3])
    second = np.array([NONE, 7, 7, NONE, NONE, NONE, 5])
    assert united([first, second]).tolist() == [0, 0, 0, 0, 4, 5, 6]
    links = (np.array([6]), np.array([4]))
    assert united([first, second], links).tolist() == [0, 0, 0, 0, 4, 5, 4]
    assert united([np.full(3, NONE)]).tolist() == [0, 1, 2]
    chain = np.arange(300) // 2, (np.arange(300) + 1) // 2  # each row with the next
    assert united(list(chain)).tolist() == [0] * 300


def test_united_is_what_a_graph_search_finds():
    rng = np.random.default_rng(0)
    for _ in range(20):
        keys = [np.where(rng.random(40) < 0.5, rng.integers(0, 30, 40), NONE) for _ in range(3)]
        wanted = np.full(40, -1)
        for start in range(40):
            reached = [start] if wanted[start] < 0 else []
            while reached:
                row = reached.pop()
                wanted[row] = start
                near = {int(j) for k in keys if k[row] != NONE for j in np.flatnonzero(k == k[row])}
                reached += [j for j in near if wanted[j] < 0]
        assert united(keys).tolist() == wanted.tolist()


def test_groups_are_taken_in_order_until_the_target_and_one_that_overshoots_is_passed_by():
    sizes, order = np.array([5, 1, 2, 3]), np.arange(4)
    assert take(sizes, order, 6).tolist() == [0, 1]  # 5 + 1
    assert take(sizes, order, 4).tolist() == [1, 2]  # 5 is too many, 1 + 2, 3 more are too many
    assert take(sizes, order[::-1], 4).tolist() == [3, 1]  # 3, then 2 are too many, 1
    assert take(sizes[[0, 3]], np.arange(2), 1).tolist() == [1]  # none fits: the smaller one
    assert take(sizes[:1], np.arange(1), 1).tolist() == []  # it would leave nothing
    assert take(sizes, order, 0).tolist() == []


def test_the_order_depends_on_seed_salt_and_key_alone():
    keys = np.array([hashed(str(i)) for i in range(2000)])
    found = scrambled(keys, 0, "test")
    assert np.array_equal(found[5:9], scrambled(keys[5:9], 0, "test"))
    assert len(np.unique(found)) == 2000
    for other in (scrambled(keys, 1, "test"), scrambled(keys, 0, "validation")):
        assert abs(np.corrcoef(found.astype(float), other.astype(float))[0, 1]) < 0.1
    bits = (found[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.all(np.abs(bits.mean(0) - 0.5) < 0.06)  # 2,000 coins are off by 0.06 once in ten million
