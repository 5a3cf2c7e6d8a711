"""Runs with a reference: rewards begin at exactly 0, a resumed run has the same reference, another model can be it, and what cannot."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_parallel import together

import tunesmith
from builders import CHATML, byte_tokenizer, tiny_model
from steppers import plain_logps
from tunesmith import config as configuration
from tunesmith.data import cache
from tunesmith.errors import InputError, Interrupted
from tunesmith.training import reference_run
from tunesmith.training.prepare import Prepared
from tunesmith.training.reference_store import ENDING, digests, fill, read

WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon", "tree"]


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w") as f:
        for n in range(30):
            said = rng.choice(WORDS, 12 if n % 3 else 2).tolist()
            row = {"prompt": " ".join(said), "chosen": " ".join(said[::-1][:3]), "rejected": " ".join(said[:2])}
            f.write(json.dumps(row) + "\n")
    return file


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """Another model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_model("llama", seed=5, vocab_size=260, eos_token_id=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(tiny_folder, pairs_file):
    """A run file's content: four steps of six rows in several micro-batches; `train` and `objective` are laid over it."""

    def make(objective=None, adapter="lora", **train):
        return {
            "model": str(tiny_folder),
            "data": [{"path": str(pairs_file)}],
            "validation": {"fraction": 0.2},
            "objective": {"name": "dpo", **(objective or {})},
            "adapter": adapter,
            "optimizer": {"name": "adamw", "learning_rate": 0.01},
            "train": {
                "max_steps": 4, "batch_size": 6, "microbatch_tokens": 300, "checkpoint_every": 1, "evaluate_every": 2,
                "dtype": "float32", "device": "cpu", **train,
            },
        }  # fmt: skip

    return make


def steps(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] == "step"]


def notices(folder):
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e["message"] for e in events if e["event"] == "notice"]


def result(folder):
    (file,) = (folder / "result").glob("*.safetensors")
    return load_file(file)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_every_reward_begins_at_exactly_zero(settings, tmp_path, dtype, adapter):
    """So the first loss is log 2, to the bit, in either precision; and so is that of the held-out rows before training."""
    tunesmith.train(settings(adapter=adapter, dtype=dtype), output=str(tmp_path / "run"))
    first, second = steps(tmp_path / "run")[:2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (first["rewards_chosen"], first["rewards_rejected"], first["rewards_margins"]) == (0.0, 0.0, 0.0)
    assert second["rewards_margins"] != 0
    before = json.loads((tmp_path / "run" / "results.json").read_text())["before"]["metrics"]
    assert before["validation_loss"]["value"] == pytest.approx(math.log(2), abs=1e-7)
    assert before["reward_margin"]["value"] == 0.0


def stopped_at(step):
    """A listener that ends the run after a step."""

    def heard(event):
        if event["event"] == "step" and event["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return heard


@pytest.fixture(scope="module")
def begun(settings, tmp_path_factory):
    """A folder with a whole run of four steps, one that was ended after two, and the cache as the second left it."""
    folder = tmp_path_factory.mktemp("begun")
    content = settings(adapter={"name": "lora", "r": 4, "dropout": 0.2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "other cache"))
        tunesmith.train(content, output=str(folder / "whole"))
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        with pytest.raises(Interrupted):
            tunesmith.train(content, output=str(folder / "cut"), listeners=(stopped_at(2),))
    return folder, content


@pytest.mark.parametrize("lost", ["nothing", "the cache", "the run's own", "both"])
def test_a_resumed_run_has_the_same_reference_bit_for_bit(begun, tmp_path, own_cache, lost):
    """Four steps are two and two more, whatever of what was kept is gone; the reference runs only where both are."""
    folder, content = begun
    shutil.copytree(folder / "cut", tmp_path / "cut")
    if lost not in ("the cache", "both"):
        shutil.copytree(folder / "cache", own_cache)
    if lost in ("the run's own", "both"):
        (tmp_path / "cut" / reference_run.FILE).unlink()
    before = len(notices(tmp_path / "cut"))
    tunesmith.train(content, output=str(tmp_path / "cut"), resume=True)
    told = [said for said in notices(tmp_path / "cut")[before:] if said.startswith("the reference")]
    assert len(told) == (lost in ("the run's own", "both"))
    assert any("runs once" in said for said in told) == (lost == "both")
    kept = [read(path / reference_run.FILE) for path in (folder / "whole", tmp_path / "cut")]
    assert np.array_equal(*(part.values.view(np.int32) for part in kept))
    assert equal(result(folder / "whole"), result(tmp_path / "cut"))
    assert [s["loss"] for s in steps(folder / "whole")] == [s["loss"] for s in steps(tmp_path / "cut")]


def test_a_run_that_starts_anew_asks_its_start(begun, tmp_path):
    """Killed before its first checkpoint, it may begin from other weights than those whose numbers it kept."""
    folder, content = begun
    shutil.copytree(folder / "cut", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    file = tmp_path / "cut" / reference_run.FILE
    other = read(file)
    file.write_bytes(b"".join(other._replace(values=other.values + 1).pieces()))
    tunesmith.train(content, output=str(tmp_path / "cut"), resume=True)
    kept = [read(path / reference_run.FILE) for path in (folder / "whole", tmp_path / "cut")]
    assert np.array_equal(*(part.values for part in kept))


def test_a_later_run_finds_them(settings, tmp_path, tiny_folder):
    """Another objective, rank, rate and order of the same rows; the cost is said first. Another template makes other tokens."""
    said = {}
    rows = {"batch_size": 4, "seed": 0}
    for name, content in {
        "first": settings({"beta": 0.1}, max_steps=8, **rows),
        "ipo": settings({"name": "ipo"}, {"name": "lora", "r": 2}, max_steps=6, **rows),
        "whole": settings({"beta": 0.5}, "full", max_steps=3, **rows),
    }.items():
        tunesmith.train(content, output=str(tmp_path / name))
        said[name] = [s for s in notices(tmp_path / name) if s.startswith("the reference")]
    (first,) = said["first"]
    assert first.startswith("the reference, the policy as it is now, runs once over 60 answers (")
    assert f"its log-probs are kept in {cache.folder_of_cache()}" in first
    for name in ("ipo", "whole"):
        assert said[name] == [
            f"the reference, the policy as it is now: its log-probs of 60 answers were found in {cache.folder_of_cache()}"
        ]
    other = tmp_path / "model"
    shutil.copytree(tiny_folder, other)
    byte_tokenizer(CHATML.replace("\n", " ")).save_pretrained(other)
    tunesmith.train({**settings(max_steps=1, **rows), "model": str(other)}, output=str(tmp_path / "template"))
    assert any("runs once over 20 answers" in s for s in notices(tmp_path / "template"))


def test_another_model_is_the_reference(settings, tmp_path, other_folder, monkeypatch):
    """Its log-probs are its own forward's; it is loaded before the policy and gone by then; a resumed run does not need it."""
    moved = tmp_path / "moved"
    shutil.copytree(other_folder, moved)
    content = settings({"reference": str(moved)})
    with pytest.raises(Interrupted):
        tunesmith.train(content, output=str(tmp_path / "run"), listeners=(stopped_at(2),))
    examples = Prepared(configuration.parse(content)).examples
    values, found = fill(examples, digests(examples), [read(tmp_path / "run" / reference_run.FILE)])
    assert found.sum() == 48  # the rows of four steps of six
    wanted = np.concatenate(plain_logps(tiny_model("llama", seed=5, vocab_size=260, eos_token_id=256), examples))
    known = ~np.isnan(values)
    assert np.abs(values[known] - wanted[known]).max() <= 1e-5
    assert any(
        said.startswith(f"the reference, {moved}, runs once over 60 answers") for said in notices(tmp_path / "run")
    )
    assert steps(tmp_path / "run")[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    monkeypatch.setattr(reference_run, "_other", None)
    tunesmith.train(content, output=str(tmp_path / "run"), resume=True)
    assert len(steps(tmp_path / "run")) == 4


def test_the_models_own_base_as_reference_is_the_start(settings, tmp_path, tiny_folder):
    """Named as the section of a model is."""
    tunesmith.train(settings({"reference": {"path": str(tiny_folder)}}, max_steps=1), output=str(tmp_path / "run"))
    assert steps(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_without_a_reference_a_reward_is_the_log_probability(settings, tmp_path, own_cache):
    tunesmith.train(settings({"reference": "none", "beta": 0.5}, max_steps=1), output=str(tmp_path / "run"))
    (first,) = steps(tmp_path / "run")
    assert first["rewards_chosen"] == pytest.approx(0.5 * first["logps_chosen"], rel=1e-6)
    assert not (tmp_path / "run" / reference_run.FILE).exists()
    assert list(own_cache.glob(f"*{ENDING}")) == []


def refused(content):
    with pytest.raises(InputError) as e:
        Prepared(configuration.parse(content))
    said = str(e.value)
    assert "\n" not in said
    return said


def reward_model(folder):
    from transformers import AutoModelForSequenceClassification

    from builders import tiny_config

    config = tiny_config("llama", vocab_size=260, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_reward_model_is_neither_reference_nor_policy(settings, tmp_path):
    folder = reward_model(tmp_path / "reward")
    said = refused(settings({"reference": folder}))
    assert said.startswith(f"objective.reference: {folder} is a reward model (sequence classification)")
    for objective in ({"name": "dpo"}, {"name": "simpo"}):
        said = refused({**settings(), "objective": objective, "model": folder})
        assert said.startswith(f"the model {folder} is a reward model (sequence classification)")
        assert "give a language model" in said


def test_a_reference_must_read_the_same_tokens(settings, tmp_path, other_folder):
    folder = tmp_path / "model"
    shutil.copytree(other_folder, folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["red"])
    tokenizer.save_pretrained(folder)  # knows all that the policy's does, and cuts words otherwise
    said = refused(settings({"reference": str(folder)}))
    assert said.startswith(
        f"objective.reference: the tokenizer of {folder} differs from the policy's: it cuts other tokens from"
    )
    said = refused(settings({"reference": "starter"}))
    assert said.startswith("objective.reference: the tokenizer of starter differs from the policy's: ")
    assert "a reference reads the same ids, so take a model of the same family." in said


def test_a_reference_with_too_short_a_context(settings, tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama", vocab_size=260, max_position_embeddings=32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    said = refused(settings({"reference": str(folder)}))
    assert said.startswith(f"objective.reference: the context of {folder} is 32 tokens, the longest example has ")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"reference": "strat"}, 'objective.reference: there is no model "strat". Did you mean "start"?'),
        ({"reference": "./gone"}, "objective.reference: there is no model folder ./gone."),
        (
            {"reference": "no-such-model"},
            'objective.reference: "no-such-model" is no local folder, and neither the hub',
        ),
        ({"reference": {"pth": "starter"}}, 'objective.reference: unknown key "pth". Did you mean "path"?'),
        ({"reference": 3}, "reference should be start, none, a model, or {path: MODEL, quantize: nf4}, found 3"),
        ({"reference": {"path": "starter", "quantize": "nf5"}}, "objective.reference: quantize should be one of nf4"),
        ({"name": "simpo", "reference": "start"}, 'unknown key "reference"'),
    ],
)
def test_what_the_run_file_says_of_a_reference_is_checked(settings, objective, said):
    assert said in refused(settings(objective))


@pytest.mark.slow  # two processes begin anew
def test_two_processes_share_the_pass(settings, tmp_path):
    """Each computes what it will train on, so that rewards begin at 0 there too; the first says the cost of both, and keeps it all."""
    content = settings(max_steps=2, batch_size=8)
    told = together(tmp_path, {"do": "train", "name": "two", "config": content, "output": str(tmp_path / "two")})
    tunesmith.train(content, output=str(tmp_path / "one"))
    first = steps(tmp_path / "two")[0]
    assert first["rewards_chosen"] == first["rewards_rejected"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    said = {n: [s for s in notices(tmp_path / n) if s.startswith("the reference")] for n in ("one", "two")}
    assert ["runs once over 44 answers" in s for s in said["two"]] == [True]
    assert ["log-probs of 44 answers were found" in s for s in said["one"]] == [True]
    assert all("reference" not in s for s in told[1]["two heard"])
    assert abs(steps(tmp_path / "one")[1]["loss"] - steps(tmp_path / "two")[1]["loss"]) <= 1e-5
