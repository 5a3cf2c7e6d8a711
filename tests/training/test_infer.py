"""What is left open is inferred from model, data and machine; what was asked is left alone."""

import pytest

from tunesmith.config import parse
from tunesmith.training import infer
from tunesmith.training.infer import Amount, Machine, Shape
from tunesmith.training.resolve import apply, refuse_changes, to_yaml

CPU = Machine("cpu", False, 8 << 30)
SMALL = Shape(2_000_000, 128, 256, 2, 512, 2048, trained=2_000_000)
LARGE = Shape(135_000_000, 2000, 1536, 30, 131072, 49152)
AMOUNT = Amount(1000, 200_000, 400, 10_000)
DATA = {"data": "rows.jsonl"}


def model_values(content, shape=SMALL, machine=CPU):
    return {i.key: i.value for i in infer.infer_model(parse({**DATA, **content}), shape, machine)}


def schedule_values(content, shape=SMALL, machine=CPU, amount=AMOUNT):
    config = parse({**DATA, "adapter": "full", "train": {"dtype": "float32"}, **content})
    return {i.key: i.value for i in infer.infer_schedule(config, shape, machine, amount)}


def test_small_models_are_trained_whole_larger_ones_by_lora():
    assert model_values({})["adapter"] == {"name": "full"}
    assert model_values({}, LARGE)["adapter"] == {"name": "lora"}
    assert model_values({"objective": "pretrain"}, LARGE)["adapter"] == {"name": "full"}
    assert "adapter" not in model_values({"adapter": "full"}, LARGE)


def test_dtype_and_length_follow_machine_and_model():
    assert model_values({})["train.dtype"] == "float32"
    assert model_values({}, machine=Machine("cpu", True, 1))["train.dtype"] == "bfloat16"
    assert model_values({})["train.max_length"] == 512
    assert model_values({}, LARGE)["train.max_length"] == 8192
    assert model_values({"train": {"max_length": 64, "dtype": "bfloat16", "device": "cpu"}}).keys() == {"adapter"}


@pytest.mark.parametrize(("rows", "epochs"), [(9_999, 3), (10_000, 2), (50_000, 1)])
def test_fewer_rows_are_worth_more_epochs(rows, epochs):
    assert schedule_values({}, amount=Amount(rows, 200_000, 400, 0))["train.epochs"] == epochs


def test_tokens_per_step_is_a_power_of_two_between_1k_and_16k():
    """200,000 tokens x 3 epochs / 200 steps = 3,000: the nearest power of two is 4,096."""
    assert schedule_values({})["train.tokens_per_step"] == 4096
    assert schedule_values({}, amount=Amount(10, 500, 100, 0))["train.tokens_per_step"] == 1024
    assert schedule_values({}, amount=Amount(10**6, 10**9, 100, 0))["train.tokens_per_step"] == 16384
    assert "train.tokens_per_step" not in schedule_values({"train": {"batch_size": 8, "dtype": "float32"}})


def test_learning_rate_by_width_and_adapter():
    """At width 2,000 the rule is 5e-5 for full training, ten times that for LoRA."""
    assert schedule_values({}, LARGE)["optimizer.learning_rate"] == 5e-5
    assert schedule_values({"adapter": "lora"}, LARGE)["optimizer.learning_rate"] == 5e-4
    assert schedule_values({"adapter": {"from": "x"}}, LARGE)["optimizer.learning_rate"] == 5e-4
    assert "optimizer.learning_rate" not in schedule_values({"optimizer": {"learning_rate": 1}})


def test_a_microbatch_holds_the_longest_example_and_fits_memory():
    """fp32, 2 layers of width 128 and 256: 2M weights, all trained, take 2M x (4 + 12) = 32 MB of the free memory and activations
    half of the rest: 1.5 x 4 x 2 x (8 x 128 + 3 x 256) = 21,504 bytes a token, 12,288 where the feed-forward is computed again."""
    room = lambda tokens, per_token: Machine("cpu", False, 32_000_000 + 2 * tokens * per_token + 100)  # noqa: E731
    short = Amount(1000, 200_000, 100, 0)
    fits = schedule_values({}, machine=room(600, 21_504), amount=short)
    assert fits["train.activation_checkpointing"] == "none"
    assert fits["train.microbatch_tokens"] == 600
    tighter = schedule_values({}, machine=room(600, 12_288), amount=short)
    assert tighter["train.activation_checkpointing"] == "selective"
    assert tighter["train.microbatch_tokens"] == 600
    hopeless = schedule_values({}, machine=Machine("cpu", False, 1000))
    assert hopeless["train.activation_checkpointing"] == "full"
    assert hopeless["train.microbatch_tokens"] == 400  # the longest example
    assert schedule_values({})["train.microbatch_tokens"] == 2048  # all a CPU gains from


def test_what_is_asked_of_memory_is_kept():
    tight = Machine("cpu", False, 32_000_000 + 2 * 600 * 21_504)
    asked = schedule_values({"train": {"dtype": "float32", "activation_checkpointing": "full"}}, machine=tight)
    assert "train.activation_checkpointing" not in asked
    assert asked["train.microbatch_tokens"] > 600
    large = schedule_values({"train": {"dtype": "float32", "microbatch_tokens": 900}}, machine=tight)
    assert large["train.activation_checkpointing"] == "selective"
    assert "train.microbatch_tokens" not in large


def test_evaluation_costs_about_a_tenth_and_comes_at_least_once():
    config = parse({**DATA, "train": {"epochs": 1}})
    few = infer.infer_intervals(config, 100, Amount(1000, 200_000, 400, 60_000))
    assert {i.key: i.value for i in few} == {"train.evaluate_every": 100, "train.checkpoint_every": 100}
    many = infer.infer_intervals(config, 100, Amount(1000, 200_000, 400, 100))
    assert many[0].value == 10


def test_the_resolved_file_says_why_and_reads_back_the_same():
    asked = parse({**DATA, "optimizer": {"betas": [0.9, 0.95]}})
    found = infer.infer_model(asked, SMALL, CPU)
    resolved = apply(asked, found)
    text = to_yaml(resolved, found)
    assert "max_length: 512  # the model's context" in text
    import yaml

    assert parse(yaml.safe_load(text)) == resolved
    refuse_changes(asked, resolved, "run")


def test_a_device_that_is_not_here_is_refused():
    import torch

    from tunesmith.errors import InputError

    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    with pytest.raises(InputError, match=r"train.device is mps, which torch does not find here"):
        infer.machine("mps")
