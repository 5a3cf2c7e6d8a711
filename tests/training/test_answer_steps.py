"""Steps over answers where they are most easily wrong: answers of several examples, memory that runs out, routers, what is measured."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_step import Waits

from builders import random_answers, random_verdicts, tiny_model
from steppers import one_step
from tunesmith.data.lazy import Origins
from tunesmith.data.records import Examples, Origin, Preference
from tunesmith.errors import InputError
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training.answers import grouped
from tunesmith.training.make_objective import make

PAIRS, LISTS = random_answers(8, seed=2), random_answers(6, answers=4, seed=3, scores=True)
VERDICTS, ALONE = random_verdicts(8, seed=4), random_verdicts(8, seed=5, mismatched=False)
CASES = {
    "dpo": ({"name": "dpo", "sft": 0.5, "desensitise": 0.3, "weighted": True}, PAIRS),
    "lists": ({"name": "dpo", "sft": 0.5}, LISTS),
    "aot": ({"name": "aot", "sft": 0.5}, PAIRS),
    "orpo": ({"name": "orpo"}, PAIRS),
    "plackett_luce": ({"name": "plackett_luce", "sft": 0.5}, LISTS),
    "kto": ({"name": "kto"}, VERDICTS),
    "bco": ({"name": "bco"}, ALONE),
    "apo_zero_unpaired": ({"name": "apo_zero_unpaired"}, ALONE),
}
case = pytest.mark.parametrize(("section", "examples"), CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _reference():
    for _, examples in CASES.values():
        rng = np.random.default_rng(0)
        examples.constants["reference"] = rng.normal(-4.5, 1.0, int(examples.scored.sum())).astype(np.float32)


def in_two(examples):
    """Return the examples each made two, the second of which scores what the first does not: as a template that rewrites history does."""
    ids, scored, offsets = [], [], [0]
    for a, b in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        half = np.cumsum(examples.scored[a:b]) <= (examples.scored[a:b].sum() + 1) // 2
        for part in (half, ~half):
            ids.append(examples.ids[a:b])
            scored.append(examples.scored[a:b] & part)
            offsets.append(offsets[-1] + b - a)
    return replace(
        examples, ids=np.concatenate(ids), scored=np.concatenate(scored), offsets=np.array(offsets), groups=2 * examples.groups,
        record=np.repeat(examples.record, 2), answer=np.repeat(examples.answer, 2), values=np.repeat(examples.values, 2),
    )  # fmt: skip


@case
@pytest.mark.parametrize("microbatch_tokens", [60, 10_000])
def test_an_answer_of_two_examples_is_one(section, examples, microbatch_tokens):
    wanted = one_step(tiny_model(dtype=torch.float64), examples, section, 10_000)
    found = one_step(tiny_model(dtype=torch.float64), in_two(examples), section, microbatch_tokens)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[2] == pytest.approx(wanted[2], rel=1e-5)
    for name, gradient in wanted[1].items():  # Llama's norms are float32, of each example by itself
        assert (found[1][name] - gradient).abs().max() <= 1e-7 * max(1.0, gradient.abs().max().item()), name


def test_answers_of_the_same_tokens_are_left_out():
    """Also where each is two examples; the mismatched answer of a verdict may say what its own does."""
    two = [[{"role": "assistant", "content": text}] for text in ("a", "a ")]
    records = [Preference([], two, origin) for origin in PAIRS.origins]
    same = replace(PAIRS, ids=PAIRS.ids.copy(), groups=None, values=None, constants={})
    a, b, c = PAIRS.offsets[4:7]  # row 3
    rest = np.arange(len(same.ids)) >= c
    ids = np.concatenate([same.ids[:b], same.ids[a:b], same.ids[rest]])
    scored = np.concatenate([same.scored[:b], same.scored[a:b], same.scored[rest]])
    offsets = np.cumsum([0, *same.lengths[:5], b - a, *same.lengths[6:]])
    same = replace(same, ids=ids, scored=scored, offsets=offsets)
    twice = replace(in_two(replace(same, groups=PAIRS.groups, values=PAIRS.values)), groups=None, values=None)
    for examples in (same, twice):
        kept, said = grouped(examples, records)
        assert kept.rows == 7
        assert said == ["random, row 3: left out, because their answers are the same tokens within train.max_length"]


@case
def test_the_validation_loss_is_a_steps_loss(section, examples):
    policy, _ = make_policy(tiny_model(dtype=torch.float64))
    found = make(section).measure(policy, examples, 100)["validation_loss"]
    assert found["value"] == pytest.approx(one_step(tiny_model(dtype=torch.float64), examples, section)[0], rel=1e-6)
    assert found["low"] < found["value"] < found["high"]


def only_own(examples):
    """Return verdicts without their mismatched answers."""
    keep = np.flatnonzero(examples.answer == 0)
    tokens = np.repeat(examples.answer == 0, examples.lengths)
    return replace(
        examples, ids=examples.ids[tokens], scored=examples.scored[tokens], answer=examples.answer[keep], values=examples.values[keep],
        offsets=np.concatenate([[0], np.cumsum(examples.lengths[keep])]), groups=np.arange(len(keep) + 1), record=examples.record[keep],
        constants={"reference": examples.constants["reference"][tokens[examples.scored]]},
    )  # fmt: skip


@case
def test_a_step_waits_for_nothing(section, examples, monkeypatch):
    """Whatever an objective asks of a batch, the host knows it or the device does the rest: several micro-batches, nothing read."""
    policy, _ = make_policy(tiny_model())
    policy.train()
    objective, rows = make(section), np.arange(examples.rows)
    batches = list(objective.batches(examples, rows, 100, policy))
    totals = objective.totals(examples, rows)
    assert len(batches) > 2
    read = []
    for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *a, n=name, f=original, **k: read.append(n) or f(t, *a, **k))
    with Waits(SimpleNamespace(progress=SimpleNamespace(step=0))) as waits:
        objective.first(policy, batches, totals)
        for batch in (b for b in batches if b.trained):
            objective.loss(policy, batch, totals).backward()
        objective.facts()
    monkeypatch.undo()
    assert not waits.found
    assert not read


def limit(monkeypatch, room):
    forward = Policy.forward

    def run(self, batch):
        if len(batch.ids) > room:
            raise MemoryError
        return forward(self, batch)

    monkeypatch.setattr(Policy, "forward", run)


@case
def test_memory_that_runs_out_within_a_step_changes_nothing(section, examples, monkeypatch):
    wanted = one_step(tiny_model(dtype=torch.float64), examples, section, 10_000)
    members = examples.members(np.arange(examples.rows))
    limit(monkeypatch, int((examples.offsets[members + 1] - examples.offsets[members]).max()) * 4)
    found = one_step(tiny_model(dtype=torch.float64), examples, section, 10_000)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[2] == pytest.approx(wanted[2], rel=1e-5)
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-10 * max(1.0, gradient.abs().max().item()), name


def test_a_row_whose_answers_do_not_fit_together_is_named(monkeypatch):
    """Each answer alone would: but the answers of a row stay together, and halving goes no further."""
    examples = random_answers(3, answers=4, prompt=8, seed=1)
    longest = int(examples.row_lengths.argmax())
    limit(monkeypatch, int(examples.lengths.max()))
    with pytest.raises(InputError, match=rf"over one row of \d+ tokens \(random, row {longest + 1}\)"):
        one_step(tiny_model(), replace(examples, constants={}), {"name": "simpo"}, 10_000)


def test_routers_are_balanced_over_what_is_trained():
    """KTO's mismatched answers run without gradients: their tokens are no part of the balance."""
    balance = {}
    for name, examples in (("kto", VERDICTS), ("apo_zero_unpaired", only_own(VERDICTS))):
        on, off = (
            one_step(tiny_model("mixtral", output_router_logits=asked), examples, {"name": name}, 100)
            for asked in (True, False)
        )
        balance[name] = {weight: on[1][weight] - off[1][weight] for weight in on[1]}
    top = max(g.abs().max().item() for g in balance["kto"].values())
    assert top > 1e-3
    for weight, gradient in balance["apo_zero_unpaired"].items():
        assert (balance["kto"][weight] - gradient).abs().max() <= 1e-5 * top, weight


def test_what_the_record_itself_says_is_named():
    """An empty answer, by its side, also where none of a row is left; answers that are the same."""

    def row(number, *texts):
        return Preference([], [[{"role": "assistant", "content": t}] for t in texts], Origin("p.jsonl", number))

    tokens = {"a": [1, 2], "b": [1, 3]}
    records = [
        row(1, "a", "b"),
        row(2, "a", ""),
        row(3, "", "b"),
        row(4, "", " "),
        row(5, "a", "a"),
        row(6, "a", "b", ""),
    ]
    made = [
        (r, n, tokens[a[0]["content"]])
        for r, one in enumerate(records)
        for n, a in enumerate(one.answers)
        if a[0]["content"].strip()
    ]
    ids = np.array([i for *_, own in made for i in own], dtype=np.int32)
    examples = Examples(
        ids=ids, scored=np.tile([False, True], len(made)), offsets=np.arange(0, len(ids) + 1, 2),
        record=np.array([r for r, *_ in made]), origins=Origins(records), answer=np.array([n for _, n, _ in made]),
    )  # fmt: skip
    kept, said = grouped(examples, records)
    assert kept.rows == 1
    assert said == [
        "p.jsonl, row 2: left out, because the rejected answer is empty",
        "p.jsonl, row 3: left out, because the chosen answer is empty",
        "p.jsonl, row 5: left out, because the chosen and the rejected answer are the same",
        "p.jsonl, row 6: left out, because an answer is empty",
        "p.jsonl, row 4: left out, because both answers are empty",
    ]
