"""The reference's pass over answers: right by the model's own forward, the training's own bits, found again, taken up after a kill."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import random_answers, tiny_model, with_lora
from steppers import plain_logps
from tunesmith.data import cache as data_cache
from tunesmith.model.adapters import full, lora
from tunesmith.model.lora import fuse
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training import reference_logps
from tunesmith.training.make_objective import make
from tunesmith.training.parallel import deal
from tunesmith.training.reference_logps import Clock, log_probs, look_up
from tunesmith.training.reference_run import of_held_out, of_steps
from tunesmith.training.reference_store import ENDING, Part, Store, digests, fill, read
from tunesmith.training.weights_key import weights_key

CAPACITY = 60  # tokens: several micro-batches a step
STEPS = [np.array([3, 0, 5]), np.array([1, 7, 2, 3])]  # row 3 a second time, 4 and 6 not at all


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reference_logps, "PART", 0.0)  # every micro-batch is a part
    return tmp_path / "cache"


@pytest.fixture
def forwards(monkeypatch):
    """The micro-batches that any policy runs from here on."""
    seen, forward = [], Policy.forward

    def counted(self, batch):
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(Policy, "forward", counted)
    return seen


def policy_of(model):
    return make_policy(model)[0]


@pytest.fixture(scope="module")
def policy():
    return policy_of(tiny_model())


def found(policy, examples, steps=STEPS, key=None, objective=None, said=None):
    """Return the log-probs of the steps' answers (of all rows where there are no steps)."""
    objective = objective or make({"name": "dpo"})
    held_out = of_held_out(objective, policy, examples, CAPACITY)
    asked = held_out if steps is None else of_steps(objective, policy, examples, steps, CAPACITY)
    store = Store(key or weights_key(policy))
    known = look_up(examples, asked, store.parts())
    return log_probs(policy, known, store, Clock((said if said is not None else []).append, known.tokens))


def used(examples, steps=STEPS):
    """Return which scored tokens belong to the rows of the steps."""
    members = examples.members(np.unique(np.concatenate(steps)))
    return np.isin(np.repeat(np.arange(len(examples)), np.diff(examples.scored_offsets)), members)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
@pytest.mark.parametrize("answers", [2, 4])
def test_values_are_those_of_the_models_own_forward(family, answers):
    """Flat with shared prompts, or padded (bloom); NaN where nobody asked."""
    examples = random_answers(8, answers=answers)
    values = found(policy_of(tiny_model(family)), examples)
    wanted = np.concatenate(plain_logps(tiny_model(family), examples))
    inside = used(examples)
    assert values.dtype == np.float32
    assert np.abs(values[inside] - wanted[inside]).max() <= 1e-5
    assert np.isnan(values[~inside]).all()


def test_shared_prompts_run_once(policy, forwards):
    """Those of 16 tokens or more: of a row with four answers, three prompts less."""
    examples = random_answers(8, answers=4)
    found(policy, examples)
    run = sum(reference_logps.tokens_of(b) for b in forwards if b.answers is not None)
    rows = np.unique(np.concatenate(STEPS))
    prompts = (examples.row_lengths - examples.row_scored)[rows] // 4
    assert (prompts >= 19).any()
    most = 3 * prompts[prompts >= 19].sum()  # an answer's first token may be shared too, and the last is not
    least = 3 * prompts[prompts >= 16].sum()
    whole = examples.row_lengths[rows].sum()
    assert whole - least - 9 * len(rows) <= run <= whole - most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["full", "lora", "continued lora"])
def test_they_have_the_bits_of_the_training_forward(dtype, kind):
    """In training mode with gradients, in the micro-batches of each step and of an evaluation."""
    model = tiny_model(dtype=dtype)
    if kind == "full":
        model = full.attach(model).model
    else:
        model = (lora.attach(model, r=4).model if kind == "lora" else with_lora(model)).to(dtype)
        fuse(model)
    policy, examples, objective = policy_of(model), random_answers(8), make({"name": "dpo"})
    once = [STEPS[0], STEPS[1][:3]]
    examples.constants["reference"] = found(policy, examples, once)
    held_out = replace(examples, constants={"reference": found(policy, examples, None, key="held out")})
    policy.train()
    for rows, some in [(once[0], examples), (once[1], examples), (np.arange(8), held_out)]:
        batches = list(objective.batches(some, rows, CAPACITY, policy))
        assert len(batches) > 1
        for batch in batches:
            assert torch.equal(policy(batch).detach(), batch.constants["reference"])


def test_verdicts_and_their_mismatched_answers(policy):
    """KTO runs the two kinds in micro-batches of their own; both have a reference."""
    examples = random_answers(6)
    examples = replace(examples, values=np.tile(np.array([1.0, np.nan], np.float32), 6))
    objective = make({"name": "kto"})
    values = found(policy, examples, [np.arange(6)], objective=objective)
    wanted = np.concatenate(plain_logps(tiny_model(), examples))
    assert np.abs(values - wanted).max() <= 1e-5


def test_no_random_number_is_drawn_and_the_mode_stays():
    policy = policy_of(with_lora(tiny_model(), dropout=0.5))
    policy.train()
    before = torch.get_rng_state()
    values = found(policy, random_answers(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    again = found(policy, random_answers(8), key="another")  # dropout is off: the same
    assert np.array_equal(values, again, equal_nan=True)


def test_a_second_run_finds_them(policy, forwards, cache):
    examples, said = random_answers(8), []
    first = found(policy, examples)
    assert len(list(cache.glob(f"*{ENDING}"))) == 1  # the parts were put together
    forwards.clear()
    assert np.array_equal(found(policy, examples, said=said), first, equal_nan=True)
    other = found(policy, examples, [np.array([7, 1]), np.array([0, 5])])  # another order, seed, batch size
    asked = [b for b in forwards if b.answers is not None]
    assert asked == []
    assert np.array_equal(other, first, equal_nan=True)
    found(policy, examples, [np.array([4]), *STEPS])  # one row more: it alone is run
    (batch,) = [b for b in forwards if b.answers is not None]
    assert set(batch.target_example) == {8, 9}


def changed_bit(examples, name):
    array = getattr(examples, name).copy()
    at = examples.offsets[1] - 1
    array[at] = not array[at] if name == "scored" else (array[at] + 1) % 97
    made = replace(examples, **{name: array})
    made.__dict__.pop("scored_offsets", None)
    return made


def test_one_token_or_its_mask_changed_is_another_example():
    examples = random_answers(8)
    names = digests(examples)
    assert len(set(names)) == len(names)
    for name in ("ids", "scored"):
        assert np.flatnonzero(digests(changed_bit(examples, name)) != names).tolist() == [0]


def test_one_weight_changed_is_another_reference():
    def key(change=lambda _: None, **kwargs):
        model = tiny_model(**kwargs)
        with torch.no_grad():
            change(model)
        return weights_key(policy_of(model))

    def nudge(model):
        w = model.model.layers[1].mlp.down_proj.weight
        w[3, 5] = torch.nextafter(w[3, 5], torch.tensor(9.0))

    def swap(model):
        w = model.model.embed_tokens.weight
        w[[3, 5]] = w[[5, 3]]

    def turn(model):  # the sign of two weights, each the top bit of eight bytes
        model.model.layers[0].mlp.up_proj.weight[3, 1:6:4] *= -1

    changes = [key(nudge), key(swap), key(turn), key(seed=1), key(dtype=torch.bfloat16), key(rope_theta=5e4)]
    keys = [key(), *changes]
    assert len(set(keys)) == 7
    assert keys[0] == key()


def test_a_fresh_adapter_is_its_base_and_a_trained_one_is_itself(policy):
    fresh = [lora.attach(tiny_model(), r=r).model for r in (2, 4)]
    trained = with_lora(tiny_model())
    keys = [weights_key(policy), *(weights_key(policy_of(m)) for m in fresh)]
    assert len(set(keys)) == 1
    continued = policy_of(trained)
    other = weights_key(continued)
    assert other not in keys
    trained.peft_config["default"].lora_alpha = 1
    assert weights_key(continued) not in [other, *keys]
    examples = random_answers(8)
    values, start = found(policy, examples), found(continued, examples)
    wanted = np.concatenate(plain_logps(with_lora(tiny_model()), examples))
    inside = used(examples)
    assert np.abs(start[inside] - wanted[inside]).max() <= 1e-5
    assert np.abs(start[inside] - values[inside]).max() > 1e-2


@pytest.mark.parametrize("kept", range(5))
def test_killed_after_any_part_it_goes_on_there(policy, kept, cache, forwards):
    """The killed one is a child of its own; the next call runs what is left, and ends with the uninterrupted one's bits."""
    examples = random_answers(8)
    whole = found(policy, examples, key="whole")
    parts = len([b for b in forwards if b.answers is not None])
    assert parts > 4
    process = os.fork()
    if not process:
        keep = Store.keep

        def dies(self, part):
            if len(list(cache.glob(f"k-*{ENDING}"))) == kept:
                os.kill(os.getpid(), signal.SIGKILL)
            return keep(self, part)

        Store.keep = dies
        found(policy, examples, key="k")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(list(cache.glob(f"k-*{ENDING}"))) == kept
    forwards.clear()
    again = found(policy, examples, key="k")
    assert len([b for b in forwards if b.answers is not None]) == parts - kept
    assert np.array_equal(again.view(np.int32), whole.view(np.int32))


@pytest.mark.parametrize("harm", ["cut", "flip", "head", "empty"])
def test_a_torn_part_is_computed_again(policy, harm, cache):
    examples = random_answers(8)
    whole = found(policy, examples, key="k")
    (file,) = cache.glob(f"k-*{ENDING}")
    raw = bytearray(file.read_bytes())
    if harm == "flip":
        raw[len(raw) // 2] ^= 1
    elif harm == "head":
        raw[0] ^= 1
    file.write_bytes({"cut": raw[:-3], "empty": b""}.get(harm, raw))
    assert read(file) is None
    assert np.array_equal(found(policy, examples, key="k"), whole, equal_nan=True)


def test_what_a_part_holds_comes_back():
    """Equal examples of a set are all found; of two parts that hold one the first counts; counts that differ are no match."""
    examples = random_answers(4)
    ids = examples.ids.copy()
    lengths = examples.lengths
    twice = replace(
        examples,
        ids=np.concatenate([ids, ids[: lengths[0]]]),
        scored=np.concatenate([examples.scored, examples.scored[: lengths[0]]]),
        offsets=np.append(examples.offsets, examples.offsets[-1] + lengths[0]),
    )
    names, counts = digests(twice), np.diff(twice.scored_offsets).astype(np.int32)
    assert names[0] == names[-1]
    first = Part(names[:2], counts[:2], np.arange(counts[:2].sum(), dtype=np.float32))
    second = Part(names[1:3], counts[1:3], np.full(counts[1:3].sum(), 7.0, np.float32))
    wrong = Part(names[3:4], counts[3:4] + 1, np.zeros(counts[3] + 1, np.float32))
    values, there = fill(twice, names, [first, second, wrong, Part(names[:0], counts[:0], first.values[:0])])
    assert there.tolist() == [True, True, True, False, False, False, False, False, True]
    a, b, c, d = np.cumsum([0, *counts])[:4].tolist()
    assert values[a:c].tolist() == first.values.tolist()
    assert values[c:d].tolist() == [7.0] * int(counts[2])
    assert values[-counts[0] :].tolist() == first.values[: counts[0]].tolist()
    assert b < c


def test_processes_share_a_step_as_the_loop_does(policy):
    """Each has its own rows of every step, in the micro-batches it will train on; none of them twice."""
    examples, objective = random_answers(8), make({"name": "dpo"})
    lengths, members = examples.row_lengths, []

    class Pretended:
        size = 2

        def __init__(self, rank):
            self.rank = rank

        def share(self, lengths):
            return deal(lengths, 2)[self.rank]

    for rank in range(2):
        asked = of_steps(objective, policy, examples, STEPS, CAPACITY, Pretended(rank))
        mine = STEPS[0][deal(lengths[STEPS[0]], 2)[rank]]
        assert asked[0].members.tolist() == examples.members(mine).tolist()
        members += [m for piece in asked for m in piece.members.tolist()]
        evaluated = of_held_out(objective, policy, examples, CAPACITY, Pretended(rank))
        members += [m + 100 for piece in evaluated for b in piece.make() for m in set(b.target_example.tolist())]
    once = examples.members(np.unique(np.concatenate(STEPS))).tolist()
    assert sorted(members) == [*once, *(range(100, 116))]


def test_without_a_cache_it_works_and_says_so(policy, cache):
    cache.write_text("a file stands where the folder should be")
    examples, said = random_answers(8), []
    values = found(policy, examples, said=said)
    assert not np.isnan(values[used(examples)]).any()
    (sentence,) = [s for s in said if "left" not in s]
    assert sentence.startswith("the reference's log-probs are not kept for the next start:")
    assert "TUNESMITH_CACHE" in sentence


@pytest.mark.parametrize("answers", [2, 4])
def test_where_memory_runs_out_a_batch_is_run_in_halves(policy, answers, monkeypatch):
    """Also those of one row's answers; a single answer that does not fit ends the run."""
    examples, said, forward = random_answers(8, answers=answers), [], Policy.forward
    wanted = found(policy, examples, key="whole")
    most = int(examples.lengths.max())

    def scarce(self, batch):
        if reference_logps.tokens_of(batch) > most:
            raise MemoryError
        return forward(self, batch)

    monkeypatch.setattr(Policy, "forward", scarce)
    np.testing.assert_allclose(found(policy, examples, key="scarce", said=said), wanted, rtol=0, atol=1e-5)
    assert sum("memory ran out over a micro-batch of" in s for s in said) == 1
    most -= 1
    with pytest.raises(MemoryError):
        found(policy, examples, steps=[np.arange(8)], key="too scarce")


def test_the_time_left_is_told(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(reference_logps.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(reference_logps, "PART", 10.0)
    clock = Clock(said.append, 1000)
    full_ = []
    for _ in range(9):
        now[0] += 8.0
        full_.append(clock.part(100))
    assert full_ == [False, True, False, True, False, True, False, True, False]
    assert said == ["the reference: 20% done, about 1 min 04 s left"]


def test_old_entries_go_first_under_the_limit_of_the_cache(policy, cache, monkeypatch):
    """Rendered tokens and log-probs alike; the one just written stays."""
    monkeypatch.setattr(reference_logps, "PART", 1e9)
    examples = random_answers(8)
    found(policy, examples, key="a")
    (old,) = cache.glob(f"a-*{ENDING}")
    tokens = cache / "some.tokens"
    tokens.write_bytes(bytes(old.stat().st_size))
    for age, file in enumerate((tokens, old)):
        os.utime(file, (1000 + age, 1000 + age))
    monkeypatch.setattr(data_cache, "MOST_BYTES", int(2.5 * old.stat().st_size))
    found(policy, examples, key="a")  # it is used now
    found(policy, examples, key="b")
    assert old.exists()
    assert not tokens.exists()
    found(policy, examples, key="c")
    assert not old.exists()
