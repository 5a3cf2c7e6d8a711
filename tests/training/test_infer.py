"""What is left open is inferred from model, data and machine; what was asked is left alone."""

from dataclasses import replace

import pytest

from tunesmith.config import parse
from tunesmith.errors import InputError
from tunesmith.training import infer, memory
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
    pretrained = {"objective": "pretrain", "adapter": "full"}
    assert (
        schedule_values(pretrained, LARGE)["optimizer.learning_rate"] == 5e-4
    )  # of whole weights alone, on which it is usual
    assert schedule_values({**pretrained, "adapter": "lora"}, LARGE)["optimizer.learning_rate"] == 5e-4


@pytest.mark.parametrize(("adapter", "rate"), [("prefix", 1.0), ("prompt", 0.3)])
def test_what_is_no_weight_has_a_rate_of_its_own_at_every_width(adapter, rate):
    for objective in ("sft", "pretrain"):
        for shape in (SMALL, LARGE):
            found = schedule_values({"adapter": adapter, "objective": objective}, shape)
            assert found["optimizer.learning_rate"] == rate


HEAD = 4 * (
    512 * 2048 + 2 * 2048 * 128
)  # a chunk's logits, and the output layer's weight laid out anew in either direction
PER_TOKEN = {  # fp32, 2 layers that keep 8 x 128 + 3 x 256 = 1,792 numbers a token, and 2.3 times as many at hand
    "none": 4 * (2 * 1792 + 2.3 * 1792),
    "selective": 4 * (2 * 1024 + 768 + 2.3 * 1792),
    "full": 4 * (2 * 128 + 1792 + 2.3 * 1792),
}


def room(tokens, how, device="cpu", **more):
    """A machine in which, beside 2M weights with gradients and moments (32 MB), three quarters of what is left hold so many tokens."""
    return Machine(device, False, 32_000_000 + HEAD + round(tokens * PER_TOKEN[how] / 0.75) + 100, **more)


def test_a_microbatch_holds_the_longest_example_and_fits_memory():
    short = Amount(1000, 200_000, 100, 0)
    for how in ("none", "selective"):
        fits = schedule_values({}, machine=room(530, how), amount=short)
        assert fits["train.activation_checkpointing"] == how
        assert fits["train.microbatch_tokens"] == 530
    hopeless = schedule_values({}, machine=Machine("cpu", False, 1000))
    assert hopeless["train.activation_checkpointing"] == "full"
    assert hopeless["train.microbatch_tokens"] == 400  # the longest example
    assert schedule_values({})["train.microbatch_tokens"] == 2048  # all a CPU gains from


def test_what_is_asked_of_memory_is_kept():
    tight = room(600, "none")
    asked = schedule_values({"train": {"dtype": "float32", "activation_checkpointing": "full"}}, machine=tight)
    assert "train.activation_checkpointing" not in asked
    assert asked["train.microbatch_tokens"] == int(600 * PER_TOKEN["none"] / PER_TOKEN["full"])
    every = schedule_values({"train": {"dtype": "float32", "activation_checkpointing": 2}}, machine=tight)
    kept_by_half = 4 * (1792 + 128 + 1792 + 2.3 * 1792)
    assert every["train.microbatch_tokens"] == int(600 * PER_TOKEN["none"] / kept_by_half)
    large = schedule_values({"train": {"dtype": "float32", "microbatch_tokens": 650}}, machine=tight)
    assert large["train.activation_checkpointing"] == "selective"
    assert "train.microbatch_tokens" not in large


def test_a_gpu_offloads_last_and_only_where_the_host_has_room():
    """A GPU's chunk of logits is of 2^28 numbers at most, in fp32 beside its own dtype; the fifth part of these layers stays."""
    deep = Shape(2_000_000, 128, 256, 60, 512, 2048, trained=2_000_000)
    amount = Amount(1000, 2_000_000, 100, 0)
    tight = {"machine": Machine("cuda", False, 32_000_000 + 8 * 4096 * 2048 + 260_000_000, 1 << 30), "amount": amount}
    found = schedule_values({}, deep, **tight)
    assert found["train.activation_checkpointing"] == "full"
    assert found["train.activation_offload"] is True
    asked = schedule_values({"train": {"dtype": "float32", "activation_offload": False}}, deep, **tight)
    assert "train.activation_offload" not in asked
    none = schedule_values({}, deep, Machine("cuda", False, 1 << 36, 1 << 30), amount)
    assert (none["train.activation_checkpointing"], none["train.activation_offload"]) == ("none", False)
    no_host = schedule_values({}, deep, Machine("cuda", False, tight["machine"].free_bytes), amount)
    assert no_host["train.activation_offload"] is False


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"activation_offload": True}, "but this run computes on cpu; take train.activation_checkpointing: full, or"),
        ({"activation_checkpointing": 3}, "recomputes every 3th layer, but the model has 2; take at most that many"),
    ],
)
def test_what_memory_settings_cannot_be_is_said(train, words):
    with pytest.raises(InputError, match=words):
        schedule_values({"train": {"dtype": "float32", **train}})


def test_stepping_inside_the_backward_pass_takes_a_whole_step_at_once():
    """Several micro-batches would add up whole gradients; and of the gradients only the largest parameter's, 2048 x 128, counts."""
    train = {"dtype": "float32", "optimizer_in_backward": True, "clip_norm": False, "tokens_per_step": 4096}
    assert schedule_values({"train": train})["train.microbatch_tokens"] == 4096
    ordinary, within = (memory.state(SMALL, 4, "cpu", 512, b) for b in (False, True))
    assert (ordinary.gradients, within.gradients) == (8_000_000, 4 * 2048 * 128)


def test_the_state_of_training():
    """bf16: 2 bytes a weight and 4 of its master, 4 of gradient; what quantised weights and other optimizers take is said."""
    lora = replace(LARGE, trained=1_000_000)
    held = memory.state(lora, 2, "cuda", 4096)
    assert (held.weights, held.gradients, held.optimizer) == (135_000_000 * 2 + 4_000_000, 4_000_000, 8_000_000)
    held = memory.state(replace(lora, weights=70_000_000, optimizer=0), 2, "cuda", 4096)
    assert (held.weights, held.optimizer) == (74_000_000, 0)
    assert memory.state(LARGE, 2, "cpu", 100).head == 100 * 49152 * 2 + 2 * 49152 * 2000 * 2


def notice(machine, **train):
    settings = {"dtype": "float32", "activation_checkpointing": "none", "microbatch_tokens": 1024, **train}
    config = parse({**DATA, "adapter": "full", "train": {"tokens_per_step": 1024, **settings}})
    return infer.memory_notice(config, SMALL, machine, Amount(1000, 200_000, 100, 0))


def test_people_are_told_what_a_run_needs_and_what_it_has():
    """4 x 1024 x 1792 x 4.3 bytes of activations, at whose peak there are no gradients yet: 30 + 15 + 6 + 8 MiB."""
    assert notice(CPU) == (
        "memory: weights 8 MiB, gradients 8 MiB, optimizer 15 MiB (adamw, 8.0 bytes a trained weight), activations 30 MiB, "
        "output layer 6 MiB; at the peak about 59 MiB, and 8.0 GiB are free"
    )
    several = notice(CPU, tokens_per_step=4096)
    assert "at the peak about 67 MiB" in several


def test_a_run_that_will_not_fit_is_told_what_would_help():
    """8,000,000 bytes of gradients, of the largest parameter 2048 x 128 alone 1 MiB: what several micro-batches add up."""
    small = Machine("cpu", False, 50 << 20)
    assert notice(small, tokens_per_step=4096).endswith(
        "; train.optimizer_in_backward: true, with train.clip_norm: false, 7 MiB, a lower train.max_length would too"
    )


def test_gradients_that_come_as_activations_go_are_nothing_to_spare():
    """In a step of one micro-batch 30 MiB of activations are gone before all of 8 MiB of gradients are there."""
    assert notice(Machine("cpu", False, 50 << 20)).endswith(
        " are free; lower train.max_length, or take a smaller model"
    )


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

    if torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    with pytest.raises(InputError, match=r"train.device is mps, which torch does not find here"):
        infer.machine("mps")
