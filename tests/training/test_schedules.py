"""Learning-rate schedules against values worked out by hand, and transformers' own at every step."""

import math

import pytest
import torch

from tunesmith.config import parse
from tunesmith.errors import InputError
from tunesmith.training.schedules import TABLE, factor


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),  # (1 + cos(pi k / 4)) / 2
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1 / 1.2]),  # the last 20% of 6 steps are 1.2 steps: (6 - 5) / 1.2
        ("polynomial", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("inverse_sqrt", [0.5, 1.0, 1.0, math.sqrt(2 / 3), math.sqrt(2 / 4), math.sqrt(2 / 5)]),  # step 2 is the 2nd
        ({"name": "cosine", "min_ratio": 0.2}, [0.5, 1.0, 1.0, 0.2 + 0.8 * 0.8535533905932737, 0.6, 0.2 + 0.8 * 0.14644660940672627]),
        ({"name": "linear", "min_ratio": 0.2}, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ({"name": "polynomial", "power": 2.0}, [0.5, 1.0, 1.0, 0.5625, 0.25, 0.0625]),
        ({"name": "wsd", "decay": 0.5, "min_ratio": 0.1}, [0.5, 1.0, 1.0, 1.0, 0.1 + 0.9 * 2 / 3, 0.1 + 0.9 / 3]),
        ({"name": "inverse_sqrt", "timescale": 1.0}, [0.5, 1.0, 1.0, math.sqrt(1 / 2), math.sqrt(1 / 3), math.sqrt(1 / 4)]),
    ],
)  # fmt: skip
def test_six_steps_two_of_warm_up(schedule, wanted):
    assert [factor(schedule, step, 6, 2) for step in range(6)] == pytest.approx(wanted)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_no_warm_up_starts_at_the_peak(name):
    assert factor(name, 0, 10, 0) == 1.0


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(
    ("schedule", "theirs", "arguments"),
    [
        ("cosine", "cosine", {}),
        ("linear", "linear", {}),
        ("constant", "constant_with_warmup", {}),
        ("inverse_sqrt", "inverse_sqrt", {}),
        ({"name": "inverse_sqrt", "timescale": 30}, "inverse_sqrt", {"timescale": 30}),
        ({"name": "cosine", "min_ratio": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ({"name": "polynomial", "power": 3.0, "min_ratio": 0.01}, "polynomial", {"power": 3.0, "lr_end": 0.02}),
        ("wsd", "warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "linear"}),
        (
            {"name": "wsd", "decay": 0.5, "min_ratio": 0.1},
            "warmup_stable_decay",
            {"num_decay_steps": 20, "decay_type": "linear", "min_lr_ratio": 0.1},
        ),
    ],
)
def test_after_the_warm_up_every_step_is_transformers(schedule, theirs, arguments, warmup):
    """Theirs begins the warm-up at 0 (wsd: at its min_lr_ratio), so their first step trains nothing; ours is a step ahead in it."""
    from transformers import get_scheduler

    peak = 2.0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    oracle = get_scheduler(theirs, optimizer, warmup, 40, scheduler_specific_kwargs=arguments)
    rates = []
    for _ in range(41):
        rates.append(oracle.get_last_lr()[0] / peak)
        optimizer.step()
        oracle.step()
    steps = range(warmup if "min_lr_ratio" in arguments else 0, 40)
    wanted = [rates[step + 1 if step < warmup else step] for step in steps]
    assert [factor(schedule, step, 40, warmup) for step in steps] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("cosin", 'train.schedule: there is no schedule "cosin". Did you mean "cosine"?'),
        ("warmup_stable_decay", 'train.schedule: there is no schedule "warmup_stable_decay". Did you mean "wsd"?'),
        ("constant_with_warmup", 'there is no schedule "constant_with_warmup". Did you mean "constant"?'),
        ({"name": "cosine", "min_ration": 0.1}, 'train.schedule: unknown key "min_ration". Did you mean "min_ratio"?'),
        ({"name": "cosine", "min_ratio": 2}, "train.schedule: min_ratio should be less than or equal to 1, found 2."),
        ({"min_ratio": 0.1}, "train.schedule needs a name, one of constant, cosine, inverse_sqrt, linear, polynomial, wsd."),
        (3, "train.schedule should be text, found 3."),
    ],
)  # fmt: skip
def test_what_is_refused(given, sentence):
    with pytest.raises(InputError) as refused:
        parse({"data": "rows.jsonl", "train": {"schedule": given}})
    assert str(refused.value).endswith(sentence)


def test_a_schedule_is_a_name_or_a_name_with_arguments():
    def stored(given):
        return parse({"data": "rows.jsonl", "train": {"schedule": given}}).train.schedule

    assert stored("linear") == stored({"name": "linear"}) == "linear"
    assert stored({"name": "wsd", "decay": "1e-1"}) == {"name": "wsd", "decay": 0.1}
