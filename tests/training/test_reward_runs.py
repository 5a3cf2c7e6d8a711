"""Runs that train a reward model: results that plain transformers and PEFT load, runs that go on, and what is refused on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tunesmith
from tunesmith import registry
from tunesmith.data.kinds import as_chats
from tunesmith.data.sources import load
from tunesmith.errors import InputError
from tunesmith.model.loading import resolve
from tunesmith.model.reward import load_reward
from tunesmith.model.reward_scores import score_chats

SETTINGS = ("train.dtype=float32", "train.batch_size=4", "train.max_steps=8", "train.checkpoint_every=4")
WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon", "tree"]


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """Sixty pairs: the better answer repeats the question's word, the other says another; two categories, two attributes."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("w") as f:
        for i in range(60):
            one, other = rng.choice(WORDS, 2, replace=False).tolist()
            row = {"prompt": f"Say {one}, {i}", "chosen": one, "rejected": f"no, {other}", "category": "ab"[i % 2]}
            f.write(json.dumps({**row, "helpful": ["chosen", "rejected", "tie"][i % 3], "harmless": [3, 1]}) + "\n")
    return file


@pytest.fixture(scope="module")
def rated_file(tmp_path_factory):
    """Sixty answers with two ratings, the second of which some rows lack."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("rated") / "rated.jsonl"
    with file.open("w") as f:
        for i in range(60):
            row = {
                "prompt": f"Say {WORDS[i % 8]}",
                "response": " ".join(rng.choice(WORDS, 1 + i % 5)),
                "helpful": i % 5,
            }
            f.write(json.dumps(row if i % 4 else {**row, "honest": 4 - i % 3}) + "\n")
    return file


@pytest.fixture
def train(tiny_folder, pairs_file, tmp_path):
    """tunesmith.train of a reward model with the tiny model, the pairs and a short schedule; `output` is under tmp_path."""

    def call(output="run", *settings, **arguments):
        given = {"model": str(tiny_folder), "data": str(pairs_file), "objective": "reward", **arguments}
        return tunesmith.train(settings=(*SETTINGS, *settings), output=str(tmp_path / output), **given)

    return call


def chats_of(file, n=6):
    return [chat for record in load(str(file)).records[:n] for chat in as_chats(record)]


def plain_scores(model, folder, chats):
    """Scores by transformers alone: the saved tokenizer's template and padding, one batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [chat.messages for chat in chats], padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def test_a_full_run_gives_a_folder_that_transformers_scores_with(train, tmp_path, pairs_file):
    from transformers import AutoModelForSequenceClassification

    result = train(adapter="full")
    chats = chats_of(pairs_file)
    plain = AutoModelForSequenceClassification.from_pretrained(result["result"], dtype="float32")
    assert plain.config.num_labels == 1
    wanted = plain_scores(plain, result["result"], chats)
    scores, combined = score_chats(*load_reward(resolve(str(tmp_path / "run"))), chats)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    np.testing.assert_allclose(combined, wanted[:, 0], atol=1e-5)
    assert np.ptp(wanted) > 0.01
    metrics = result["metrics"]
    assert {"validation_loss", "preference_accuracy", "reward_margin", "calibration_error"} <= set(metrics)
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["before"]["metrics"]["validation_loss"]["value"] == pytest.approx(np.log(2), abs=1e-6)
    assert stored["before"]["metrics"]["preference_accuracy"]["value"] == 0.5
    assert stored["reward"]["pairs"] == metrics["preference_accuracy"]["n"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "How sure, and how often right" in report
    assert "tunesmith score" in report
    assert "tunesmith chat" not in report


@pytest.mark.parametrize("quantize", [None, pytest.param("nf4", marks=pytest.mark.slow)])
def test_an_adapter_is_one_that_peft_scores_with(train, tmp_path, pairs_file, quantize):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if quantize:
        pytest.importorskip("bitsandbytes")
    result = train("run", *([f"model.quantize={quantize}"] if quantize else []), adapter="lora")
    chats = chats_of(pairs_file)
    scores, _ = score_chats(*load_reward(resolve(str(tmp_path / "run"))), chats)
    assert np.ptp(scores) > 0.01
    folder = Path(result["result"])
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["task_type"] == "SEQ_CLS"
    assert any("score" in name for name in load_file(folder / "adapter_model.safetensors"))
    config = AutoConfig.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(
        saved["base_model_name_or_path"], config=config, dtype="float32"
    )
    found = plain_scores(PeftModel.from_pretrained(base, folder), folder, chats)
    np.testing.assert_allclose(found, scores, atol=0.5 if quantize else 1e-5)  # PEFT's base is not quantised here


def test_attributes_are_named_heads_with_weights(train, tmp_path, pairs_file):
    from transformers import AutoConfig

    section = {"name": "reward", "attributes": {"helpful": 0.75, "harmless": 0.25}}
    result = train(config={"objective": section}, objective=None)
    config = AutoConfig.from_pretrained(result["result"])
    assert config.id2label == {0: "helpful", 1: "harmless"}
    assert config.reward_weights == {"helpful": 0.75, "harmless": 0.25}
    assert {"attribute_accuracy/helpful", "attribute_accuracy/harmless"} <= set(result["metrics"])
    policy, tokenizer = load_reward(resolve(str(tmp_path / "run")))
    scores, combined = score_chats(policy, tokenizer, chats_of(pairs_file))
    np.testing.assert_allclose(combined, scores @ [0.75, 0.25], atol=1e-12)


def test_regression_to_ratings(train, rated_file):
    section = {"name": "regression", "attributes": ["helpful", "honest"]}
    result = train(
        "run",
        "train.max_steps=40",
        "optimizer.learning_rate=3e-3",
        config={"objective": section},
        objective=None,
        data=str(rated_file),
    )
    metrics = result["metrics"]
    assert metrics["rating_correlation/helpful"]["value"] > 0.5  # it is how long the answer is
    assert metrics["rating_error/helpful"]["value"] < 2
    assert "preference_accuracy" not in metrics


def test_a_run_resumed_is_the_same_run(train, tmp_path):
    train("whole", adapter="lora")
    train("half", "train.max_steps=8", adapter="lora")
    stopped = tmp_path / "half" / "checkpoints" / "step-8"
    for file in stopped.iterdir():
        file.unlink()
    stopped.rmdir()
    (tmp_path / "half" / "results.json").unlink()
    (tmp_path / "half" / "state.json").write_text('{"state": "interrupted"}')
    tunesmith.train(str(tmp_path / "half" / "run.yaml"), resume=True)
    one, other = (load_file(tmp_path / name / "result" / "adapter_model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_reward_model_is_trained_on(train, tmp_path, pairs_file):
    """As it is, adapter or whole; its head goes on from where it was."""
    for adapter in ("full", "lora"):
        train(adapter, adapter=adapter)
        train(f"{adapter}-on", "train.max_steps=1", "optimizer.learning_rate=1e-9", model=str(tmp_path / adapter))
        one, other = (
            score_chats(*load_reward(resolve(str(tmp_path / name))), chats_of(pairs_file))[0]
            for name in (adapter, f"{adapter}-on")
        )
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_an_adapter_that_writes_is_merged_first(train, tmp_path, rows_file, tiny_folder, pairs_file):
    """SFT with LoRA -> reward model: the base with the adapter in it becomes the reward model's base."""
    tunesmith.train(
        model=str(tiny_folder), data=str(rows_file), adapter="lora", output=str(tmp_path / "sft"), settings=SETTINGS
    )
    said = []
    train("rm", model=str(tmp_path / "sft"), listeners=[said.append])
    assert any("is merged into the base first" in e.get("message", "") for e in said)
    assert (tmp_path / "rm" / "base" / "config.json").is_file()
    scores, _ = score_chats(*load_reward(resolve(str(tmp_path / "rm"))), chats_of(pairs_file))
    assert np.ptp(scores) > 0.001


def refusal(call, *arguments, **keywords):
    with pytest.raises(InputError) as e:
        call(*arguments, **keywords)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_a_reward_model_has_not(train):
    assert "evaluate measures what a model writes" in refusal(train, "r", "evaluate=exact_match")
    assert "regularizer kl_to_base compares what models write" in refusal(train, "r", "regularizer=kl_to_base")
    assert "bottleneck keeps no head in its file" in refusal(train, adapter="bottleneck")
    assert "objective.attributes names a twice" in refusal(
        train, config={"objective": {"name": "reward", "attributes": ["a", "a"]}}, objective=None
    )


def test_a_row_without_a_rating_is_named(train, rows_file, rated_file):
    said = refusal(train, data=str(rows_file), objective="regression")
    assert said.startswith(f"{rows_file}, row ")
    assert 'has no rating: neither a field "score" nor scores' in said
    said = refusal(
        train,
        data=str(rated_file),
        config={"objective": {"name": "regression", "attributes": "useful"}},
        objective=None,
    )
    assert "is rated by none of the attributes useful" in said
    assert "its fields with numbers are helpful" in said


def test_a_reward_model_is_no_model_that_writes(train, tmp_path, rows_file):
    for adapter in ("full", "lora"):
        train(adapter, adapter=adapter)
        folder = str(tmp_path / adapter)
        said = refusal(
            tunesmith.train, model=folder, data=str(rows_file), output=str(tmp_path / "sft"), settings=SETTINGS
        )
        assert "reward model" in said
        assert "reward model" in refusal(tunesmith.generate, folder, prompt="Who?")


def test_rows_beyond_max_length_are_left_out_and_told(train, pairs_file):
    from builders import byte_tokenizer

    chats = chats_of(pairs_file, 60)
    longest = max(len(byte_tokenizer().apply_chat_template(c.messages, return_dict=False)) for c in chats)
    said = []
    train("r", f"train.max_length={longest - 1}", listeners=[said.append])
    assert any(f"longer than max_length {longest - 1} and left out" in e.get("message", "") for e in said)
    assert "all are longer than max_length 20" in refusal(train, "other", "train.max_length=20")


KEEPS_NO_HEAD = ("bottleneck", "trainable_tokens")
OPTIONS = {"adalora": {"init_r": 6, "target_r": 3}, "loftq": {}}
EVERY = [name for name in registry.names("model.adapters") if name not in (*KEEPS_NO_HEAD, "full", "lora")]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", EVERY)
def test_every_adapter_keeps_its_head(adapter, train, tmp_path, pairs_file):
    """The result loaded again gives the scores of the policy that was trained."""
    from tunesmith.training.stages import Training

    policies = []
    with pytest.MonkeyPatch.context() as patch:
        loops = Training._loop
        patch.setattr(Training, "_loop", lambda self: policies.append(loop := loops(self)) or loop)
        train("run", config={"adapter": {"name": adapter, **OPTIONS.get(adapter, {})}})
    chats = chats_of(pairs_file)
    policy, tokenizer = load_reward(resolve(str(tmp_path / "run")), "float32")
    found, _ = score_chats(policy, tokenizer, chats)
    wanted, _ = score_chats(policies[0].policy.eval(), tokenizer, chats)
    assert np.ptp(wanted) > 1e-4
    np.testing.assert_allclose(found, wanted, atol=1e-4)
