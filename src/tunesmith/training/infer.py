"""What the user left open: values inferred from model, data and machine, each with the reason people are told."""

import math
from dataclasses import dataclass
from typing import Any

from tunesmith.config import RunConfig
from tunesmith.errors import InputError

SMALL = 50_000_000  # parameters; below it full fine-tuning costs less than it brings


@dataclass(frozen=True, slots=True)
class Inferred:
    """One inferred value of the run file, by its dotted key."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config says of it: parameters, hidden width, feed-forward width, layers, longest context in tokens, vocabulary."""

    parameters: int
    width: int
    feedforward: int
    layers: int
    context: int | None
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run computes: device type, whether it multiplies in bf16, free memory in bytes."""

    device: str
    bfloat16: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Amount:
    """The data after rendering: training rows, their tokens per epoch, the longest example, validation tokens."""

    rows: int
    tokens: int
    longest: int
    validation_tokens: int


def machine(device: str | None) -> Machine:
    """Look at this machine; `device` None means a GPU where there is one, else the CPU."""
    import psutil
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device]:
        known = ", ".join(d for d in present if present[d])
        raise InputError(f"train.device is {device}, which torch does not find here; this machine has {known}.")
    if device == "cuda":
        return Machine("cuda", torch.cuda.is_bf16_supported(), torch.cuda.mem_get_info()[0])
    bf16 = device == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return Machine(device, bf16, psutil.virtual_memory().available)


def infer_model(config: RunConfig, shape: Shape, machine: Machine) -> list[Inferred]:
    """Infer what must be known before the data is rendered: adapter, dtype, longest example."""
    found = []
    if config.train.device is None:
        found.append(
            Inferred("train.device", machine.device, "a GPU was found" if machine.device == "cuda" else "no GPU here")
        )
    if config.adapter is None:
        small = shape.parameters < SMALL
        name = "full" if small or config.objective["name"] == "pretrain" else "lora"
        why = f"{_count(shape.parameters)} parameters: " + (
            "small enough to train whole" if small else "an adapter saves memory"
        )
        if not small and name == "full":
            why = "pre-training changes every weight"
        found.append(Inferred("adapter", {"name": name}, why))
    if config.train.dtype is None:
        value = "bfloat16" if machine.bfloat16 else "float32"
        found.append(
            Inferred(
                "train.dtype",
                value,
                f"this {machine.device} {'has' if machine.bfloat16 else 'lacks'} fast bf16 products",
            )
        )
    if config.train.max_length is None:
        limit = min(shape.context or 8192, 8192)
        found.append(
            Inferred(
                "train.max_length", limit, "the model's context" if limit == shape.context else "enough for most rows"
            )
        )
    return found


def infer_schedule(config: RunConfig, shape: Shape, machine: Machine, amount: Amount) -> list[Inferred]:
    """Infer how long and in what portions, once the rendered data is known."""
    train, found = config.train, []
    epochs = train.epochs
    if epochs is None and train.max_steps is None:
        epochs, why = _epochs(config, amount)
        found.append(Inferred("train.epochs", epochs, why))
    tokens = train.tokens_per_step
    if train.batch_size is None and tokens is None:
        wanted = max(amount.tokens * (epochs or 1) / 200, 4 * amount.tokens / max(amount.rows, 1))
        tokens = _power_of_two(min(max(wanted, 1024), 16384))
        found.append(
            Inferred(
                "train.tokens_per_step", tokens, f"about 200 steps over {amount.tokens:,} tokens per epoch, 1k to 16k"
            )
        )
    if "learning_rate" not in config.optimizer:
        found.append(_learning_rate(config, shape))
    if train.schedule is None:
        found.append(Inferred("train.schedule", "cosine", "falls to zero by the last step"))
    if train.warmup is None:
        found.append(Inferred("train.warmup", 0.05, "5% of the steps, so that Adam's averages settle first"))
    if train.microbatch_tokens is None:
        found.append(_microbatch(shape, machine, amount, tokens, train.dtype))
    return found


def infer_intervals(config: RunConfig, steps: int, amount: Amount) -> list[Inferred]:
    """Infer how often to evaluate and to save, once the number of steps is known."""
    train, found = config.train, []
    every = train.evaluate_every
    if every is None:
        # Scoring costs about a third of training per token; keep it near a tenth of the run.
        epochs = train.epochs or 1
        affordable = 0.3 * amount.tokens * epochs / max(amount.validation_tokens, 1)
        times = int(min(10, steps, max(1, affordable)))
        every = max(1, -(-steps // times))
        found.append(
            Inferred(
                "train.evaluate_every", every, f"{times} times in {steps} steps, about a tenth of the time at most"
            )
        )
    if train.checkpoint_every is None:
        found.append(Inferred("train.checkpoint_every", every, "with each evaluation"))
    return found


def _epochs(config: RunConfig, amount: Amount) -> tuple[float, str]:
    if config.objective["name"] == "pretrain":
        return 1, "pre-training reads each text once"
    n = amount.rows
    value = 3 if n < 10_000 else 2 if n < 50_000 else 1
    return value, f"{n:,} rows: fewer rows are worth more passes (3 below 10,000, 2 below 50,000, else 1)"


def _learning_rate(config: RunConfig, shape: Shape) -> Inferred:
    """5e-5 (2000 / width)^0.781 for full fine-tuning and ten times that for LoRA (Schulman et al., LoRA Without Regret, 2025)."""
    full = 5e-5 * (2000 / shape.width) ** 0.781
    is_full = config.adapter is not None and config.adapter.get("name") == "full"
    if config.objective["name"] == "pretrain":
        full *= 10  # from random weights or a new domain; the usual ratio of pre-training to fine-tuning rates
    value = float(f"{full if is_full else 10 * full:.2g}")
    return Inferred(
        "optimizer.learning_rate",
        value,
        f"the usual rule for {'full' if is_full else 'LoRA'} training at width {shape.width}",
    )


def _microbatch(shape: Shape, machine: Machine, amount: Amount, tokens: int | None, dtype: str | None) -> Inferred:
    size = 4 if dtype == "float32" else 2
    per_token = 1.5 * size * shape.layers * (8 * shape.width + 3 * shape.feedforward)
    most = 2048 if machine.device == "cpu" else 16384  # a CPU gains nothing from more, a GPU wants to be filled
    fits = int(0.3 * machine.free_bytes / per_token)
    value = max(min(most, fits, tokens or most), amount.longest)
    return Inferred(
        "train.microbatch_tokens",
        value,
        f"about {_memory(value * per_token)} of activations of {_memory(machine.free_bytes)} free",
    )


def _power_of_two(x: float) -> int:
    return 1 << max(0, round(math.log2(x)))


def _count(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k"


def _memory(n: float) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
