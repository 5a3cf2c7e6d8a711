"""What reward models are trained on: values derived by hand, ratings read from rows, and steps that do not depend on how they are cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import random_answers, tiny_scorer, with_lora
from steppers import one_step
from tunesmith.data.detect import best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Chat, Origin, Preference, Verdict
from tunesmith.model.reward_config import describe
from tunesmith.training import reward_rows
from tunesmith.training.make_objective import make
from tunesmith.training.objectives import regression, reward, reward_ranked
from tunesmith.training.objectives._answers import Lists, Side
from tunesmith.training.objectives._scores import Labelled, ScorePairs
from tunesmith.training.reward_rows import LABEL

L2, L3, L4 = math.log(2), math.log(3), math.log(4)
NAN = math.nan
HERE = Origin("x.jsonl", 3)


def score_pairs(chosen, rejected, sign=None, margins=None):
    chosen, rejected = torch.tensor(chosen), torch.tensor(rejected)
    sign = torch.ones_like(chosen) if sign is None else torch.tensor(sign)
    return ScorePairs(chosen, rejected, sign, torch.zeros_like(chosen) if margins is None else torch.tensor(margins))


def test_reward_by_hand():
    """-log sigmoid(log 3) = log(4/3); with 1/2 of a margin of 2 log 3 taken off, log 2; centred, the square of the sum is added."""
    given = score_pairs([[L3], [0.0]], [[0.0], [0.0]], margins=[[2 * L3], [0.0]])
    assert reward.loss(given).tolist() == pytest.approx([L4 - L3, L2])
    assert reward.loss(given, margin=0.5).tolist() == pytest.approx([L2, L2])
    assert reward.loss(given, center=0.1).tolist() == pytest.approx([L4 - L3 + 0.1 * L3**2, L2])


def test_reward_of_attributes_by_hand():
    """The first pair is better by one attribute and worse by the other, the second is compared by one, the third by none."""
    given = score_pairs([[L3, 0.0], [L3, 5.0], [1.0, 1.0]], [[0.0, L3]] + [[0.0, 0.0]] * 2, [[1, -1], [1, 0], [0, 0]])
    assert reward.loss(given).tolist() == pytest.approx([L4 - L3, L4 - L3, 0.0])


def test_ranked_by_hand():
    """Scores log 4, log 2, 0 of 7 in all: the best is chosen with 4/7, the next with 2/3; a list of two is the pair."""
    side = Side(torch.tensor([L4, L2, 0.0, L3, 0.0]), torch.zeros(5), torch.ones(5))
    place = torch.tensor([[0, 1, 2], [3, 4, 0]])
    lists = Lists(side, place, torch.tensor([[True] * 3, [True, True, False]]), torch.full((2, 3), NAN))
    losses, rewards = reward_ranked.loss(lists)
    assert losses.tolist() == pytest.approx([math.log(7 / 4) + math.log(3 / 2), L4 - L3])
    assert rewards[1].tolist() == pytest.approx([L3, 0.0, 0.0])
    pair = reward.loss(score_pairs([[L3]], [[0.0]]), center=0.2).item()
    assert reward_ranked.loss(lists, center=0.2)[0][1].item() == pytest.approx(pair)


def test_regression_by_hand():
    given = Labelled(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0], [1.0, NAN]]))
    assert regression.loss(given).tolist() == [2.5, 4.0]


def at_the_end(examples):
    examples.scored[:] = False
    examples.scored[examples.offsets[1:] - 1] = True
    return examples


def two_heads(attach=lambda model: model):
    model = tiny_scorer(attributes=2)
    describe(model.config, (("a", 0.75), ("b", 0.25)))
    return attach(model)


@pytest.mark.parametrize("attach", [lambda model: model, with_lora], ids=["full", "lora"])
@pytest.mark.parametrize("answers", [2, 4])
@pytest.mark.parametrize("name", ["reward", "reward_ranked", "regression"])
def test_a_step_is_the_same_however_it_is_cut(name, answers, attach):
    examples = at_the_end(random_answers(8, answers, seed=2, scores=True))
    rng = np.random.default_rng(0)
    for attribute in ("a", "b"):
        labels = rng.integers(0, 3, len(examples)).astype(np.float32)
        labels[: 3 * answers] = NAN  # rows that say nothing of it
        examples.constants[LABEL + attribute] = labels
    whole, parts = (one_step(two_heads(attach), examples, {"name": name}, tokens) for tokens in (10_000, 130))
    assert whole[3] == 1
    assert parts[3] > 2
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    assert whole[1].keys() == parts[1].keys()
    for key, gradient in whole[1].items():
        assert (parts[1][key] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max().item()), key
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)


def test_the_pairs_of_a_list_count_as_one_row():
    """The loss of a step is the mean over rows of the mean over a list's pairs that do not tie, found here one by one."""
    examples = at_the_end(random_answers(3, 4, seed=4, scores=True))
    examples.values[1] = examples.values[0]  # a tie in the first list
    model = tiny_scorer()
    scores = []
    for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        ids = torch.from_numpy(examples.ids[a:b].astype(np.int64))
        model.config.pad_token_id = None
        scores.append(model(ids[None]).logits[0, 0].item())
    rows = []
    for g in range(3):
        own, values = scores[4 * g : 4 * g + 4], examples.values[4 * g : 4 * g + 4]
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4) if values[i] != values[j]]
        assert len(pairs) == (5 if g == 0 else 6)
        gaps = [own[i] - own[j] - 2.0 * float(values[i] - values[j]) for i, j in pairs]
        rows.append(np.mean([math.log1p(math.exp(-gap)) for gap in gaps]))
    loss, *_ = one_step(tiny_scorer(), examples, {"name": "reward", "margin": 2.0})
    assert loss == pytest.approx(np.mean(rows), abs=1e-5)


def test_rows_that_say_nothing_of_attributes_compare_the_weighted_sum():
    """And rows that do compare each attribute by itself, whichever answer stands first."""
    examples = at_the_end(random_answers(2, 2, seed=4))
    examples.constants[LABEL + "a"] = np.array([0, 1, NAN, NAN], np.float32)  # the second answer is better
    examples.constants[LABEL + "b"] = np.array([NAN] * 4, np.float32)
    model = two_heads()
    scores = []
    for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        model.config.pad_token_id = None
        scores.append(model(torch.from_numpy(examples.ids[a:b].astype(np.int64))[None]).logits[0])
    by_a = torch.nn.functional.softplus(scores[0][0] - scores[1][0]).item()
    combined = torch.stack(scores) @ torch.tensor([0.75, 0.25])
    by_sum = torch.nn.functional.softplus(combined[3] - combined[2]).item()
    loss, _, facts, _ = one_step(two_heads(), examples, {"name": "reward"})
    assert loss == pytest.approx((by_a + by_sum) / 2, abs=1e-5)
    assert facts["rewards_margins"] == pytest.approx(
        ((combined[0] - combined[1]) + (combined[2] - combined[3])).item() / 2, abs=1e-5
    )


def preference(**extra):
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    return Preference([{"role": "user", "content": "?"}], said, HERE, None, None, extra)


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"helpful": "chosen"}, [1, 0]),
        ({"helpful": "Rejected"}, [0, 1]),
        ({"helpful": "tie"}, [0.5, 0.5]),
        ({"helpful": [4, 2.5]}, [4, 2.5]),
        ({"helpful": "[4, null]"}, [4, NAN]),
        ({"chosen_helpful": 1, "rejected_helpful": "3"}, [1, 3]),
        ({"harmless": 1}, [NAN, NAN]),
    ],
)
def test_ratings_of_a_pair(extra, wanted):
    np.testing.assert_array_equal(reward_rows.ratings(preference(**extra), ["helpful"])[:, 0], wanted)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"helpful": "both"}, r'x.jsonl, row 3: field "helpful" is a string \("both"\), expected a list of 2 numbers'),
        ({"helpful": [1, 2, 3]}, "expected a list of 2 numbers"),
        ({"helpful": [1, "x"]}, r'field "helpful\[1\]" is a string'),
    ],
)  # fmt: skip
def test_ratings_that_are_none(extra, said):
    with pytest.raises(RowError, match=said):
        reward_rows.ratings(preference(**extra), ["helpful"])


def test_ratings_of_one_answer():
    chat = Chat(
        [{"role": "user", "content": "?"}], [False], HERE, None, {"helpful": 3, "harmless": True, "honest": None}
    )
    found = reward_rows.ratings(chat, ["helpful", "harmless", "honest"])
    np.testing.assert_array_equal(found, [[3, 1, NAN]])
    verdict = Verdict([], [], False, HERE)
    assert reward_rows.own_rating(verdict).tolist() == [[0.0]]
    assert reward_rows.own_rating(Chat([], [], HERE, None, {"score": "2.5"})).tolist() == [[2.5]]


def test_ratings_of_a_ranked_list_follow_its_answers():
    """The list is sorted by its scores, and what else is said of each answer with it."""
    row = {
        "prompt": "?",
        "responses": ["a", "b", "c"],
        "scores": [1, 3, 2],
        "helpful": [10, 30, 20],
        "tags": ["x", "y", "z"],
    }
    found = best_match(row)
    assert found is not None
    (record,) = convert(row, HERE, found[0])
    assert [answer[0]["content"] for answer in record.answers] == ["b", "c", "a"]
    assert record.extra == {"helpful": [30, 20, 10], "tags": ["x", "y", "z"]}
    assert reward_rows.ratings(record, ["helpful"])[:, 0].tolist() == [30, 20, 10]


def test_a_rating_far_from_the_mean_is_no_divergence():
    """What ends a run is a loss beyond 1.5 times this: a last step of one row that is rated 4 has a loss of 16 at the start."""
    examples = replace(random_answers(3, answers=1), constants={"rated a": np.array([4.0, np.nan, -1], np.float32)})
    assert make({"name": "regression"}).unknowing(examples) == 16.0
    assert make({"name": "reward"}).unknowing(examples) == make({"name": "dpo"}).unknowing(examples) == 0.0
