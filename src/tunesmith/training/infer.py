"""What the user left open: values inferred from model, data and machine, each with the reason people are told."""

import math
from dataclasses import dataclass
from datetime import date
from typing import Any, get_args

from tunesmith.config import RunConfig
from tunesmith.errors import InputError
from tunesmith.training import memory
from tunesmith.training.memory import How
from tunesmith.training.parallel import neighbours

SMALL = 50_000_000  # parameters; below it full fine-tuning costs less than it brings


@dataclass(frozen=True, slots=True)
class Inferred:
    """One inferred value of the run file, by its dotted key."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config says of it: parameters, hidden width, feed-forward width, layers, longest context in tokens, vocabulary.

    `trained` counts the parameters the adapter trains, once that is known.
    """

    parameters: int
    width: int
    feedforward: int
    layers: int
    context: int | None
    vocabulary: int
    trained: int = 0


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
        return Machine("cuda", torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.mem_get_info()[0])
    bf16 = device == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return Machine(device, bf16, psutil.virtual_memory().available // neighbours())


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
        value = "bfloat16" if machine.bfloat16 else "float16" if machine.device == "cuda" else "float32"
        how = "has fast bf16 products" if machine.bfloat16 else "lacks fast bf16 products"
        how += ", float16 is trained with loss scaling" if value == "float16" else ""
        found.append(Inferred("train.dtype", value, f"this {machine.device} {how}"))
    if config.train.max_length is None:
        limit = min(shape.context or 8192, 8192)
        found.append(
            Inferred(
                "train.max_length", limit, "the model's context" if limit == shape.context else "enough for most rows"
            )
        )
    return found


def infer_date(config: RunConfig) -> list[Inferred]:
    """Infer the date that a chat template which asks for one is told, once and for all of the run."""
    if config.train.date is not None:
        return []
    return [
        Inferred("train.date", date.today().isoformat(), "the chat template writes the date; a resumed run keeps it")
    ]


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
    return found + _memory_settings(config, shape, machine, amount, tokens or amount.tokens)


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


def _memory_settings(config: RunConfig, shape: Shape, machine: Machine, amount: Amount, most: int) -> list[Inferred]:
    """Infer what is recomputed and how many tokens are computed at once from the memory that weights and optimizer leave."""
    train = config.train
    size = 4 if train.dtype == "float32" else 2
    hows: tuple[How, ...] = (train.activation_checkpointing,) if train.activation_checkpointing else get_args(How)
    bytes_ = {how: memory.activation_bytes(shape.width, shape.feedforward, shape.layers, size, how) for how in hows}
    left = machine.free_bytes - memory.state_bytes(shape.parameters, shape.trained, size)
    room = memory.SHARE * max(left, 0)
    fit = memory.fit(bytes_, room, machine.device, amount.longest, most, train.microbatch_tokens)
    found = []
    if train.activation_checkpointing is None:
        kept = max(amount.longest, train.microbatch_tokens or min(memory.ENOUGH[machine.device], most)) * bytes_["none"]
        why = {
            "none": "activations fit into the free memory",
            "selective": f"to keep all would take {_memory(kept)} of {_memory(room)}: feed-forward blocks are computed again",
            "full": f"to keep all would take {_memory(kept)} of {_memory(room)}: every layer is computed again",
        }
        found.append(Inferred("train.activation_checkpointing", fit.how, why[fit.how]))
    if train.microbatch_tokens is None:
        why_tokens = f"about {_memory(fit.activations)} of activations, {_memory(room)} are there for them"
        found.append(Inferred("train.microbatch_tokens", fit.tokens, why_tokens))
    return found


def _power_of_two(x: float) -> int:
    return 1 << max(0, round(math.log2(x)))


def _count(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k"


def _memory(n: float) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
