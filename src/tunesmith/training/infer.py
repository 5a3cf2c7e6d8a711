"""What the user left open: values inferred from model, data and machine, each with the reason people are told."""

import math
from dataclasses import dataclass
from datetime import date
from typing import Any

from tunesmith import registry
from tunesmith.config import RunConfig
from tunesmith.errors import InputError
from tunesmith.model.adapters._rate import factor
from tunesmith.model.adapters._rate import full as full_rate
from tunesmith.training import memory
from tunesmith.training.memory import Choice, How
from tunesmith.training.parallel import neighbours

SMALL = 50_000_000  # parameters; below it full fine-tuning costs less than it brings


COMPARED = 0.1  # of SFT's learning rate: a comparison moves what SFT made, and a large step undoes it


@dataclass(frozen=True, slots=True)
class Inferred:
    """One inferred value of the run file, by its dotted key."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's config says of it: parameters, hidden width, feed-forward width, layers, longest context in tokens, vocabulary.

    `trained` counts the parameters the adapter trains, once that is known; `weights` are the bytes of a quantised model's, `optimizer`
    those of the optimizer's state on the device. heads: of queries; attention: numbers that a token's queries and keys have, and what
    attention makes of them, in a layer (0: as many as 4 widths).
    """

    parameters: int
    width: int
    feedforward: int
    layers: int
    context: int | None
    vocabulary: int
    trained: int = 0
    weights: int | None = None
    optimizer: int | None = None
    heads: int = 0
    attention: int = 0
    trains_output: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run computes: device type, whether it multiplies in bf16, free memory in bytes; of a GPU's host, host_bytes."""

    device: str
    bfloat16: bool
    free_bytes: int
    host_bytes: int = 0


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
        free, host = torch.cuda.mem_get_info()[0], psutil.virtual_memory().available // neighbours()
        return Machine("cuda", torch.cuda.is_bf16_supported(including_emulation=False), free, host)
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
        small, frozen = shape.parameters < SMALL, config.quantization() is not None
        name = "full" if (small or config.objective["name"] == "pretrain") and not frozen else "lora"
        why = f"{_count(shape.parameters)} parameters: " + (
            "small enough to train whole" if small else "an adapter saves memory"
        )
        if not small and name == "full":
            why = "pre-training changes every weight"
        if frozen:
            why = "a quantised model is frozen"
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
        found.append(_of_optimizer(_of_objective(_learning_rate(config, shape), config), config))
    if train.schedule is None:
        only = getattr(registry.load("training.optimizers", config.optimizer["name"]), "SCHEDULE", None)
        why = f"{config.optimizer['name']} goes with no other" if only else "falls to zero by the last step"
        found.append(Inferred("train.schedule", only or "cosine", why))
    if train.warmup is None:
        found.append(Inferred("train.warmup", 0.05, "5% of the steps, so that Adam's averages settle first"))
    return found + _memory_settings(config, shape, machine, amount, _most(tokens, train.batch_size, amount))


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
    if hasattr(registry.load("training.objectives", config.objective["name"]), "compares"):
        return 1, "answers are compared once: more passes over the same pairs overfit soon"
    n = amount.rows
    value = 3 if n < 10_000 else 2 if n < 50_000 else 1
    return value, f"{n:,} rows: fewer rows are worth more passes (3 below 10,000, 2 below 50,000, else 1)"


def _learning_rate(config: RunConfig, shape: Shape) -> Inferred:
    """Full fine-tuning's rate at the model's width times the adapter's factor, or the adapter's own rate (model/adapters/_rate.py)."""
    key, name = "optimizer.learning_rate", (config.adapter or {}).get("name")
    adapter = registry.load("model.adapters", name) if name else None
    own = getattr(adapter, "LEARNING_RATE", None)
    if own is not None:
        return Inferred(key, own, f"measured for {name}, whatever the model's width")
    full, times = full_rate(shape.width), factor(adapter, shape.width)
    if config.objective["name"] == "pretrain" and times == 1:
        full *= 10  # from random weights or a new domain; the usual ratio of pre-training to fine-tuning rates
    kind = {1.0: "full training", 10.0: "LoRA"}.get(times, f"{name}, {times:g} times full training's,")
    return Inferred(key, float(f"{times * full:.2g}"), f"the usual rule for {kind} at width {shape.width}")


def _of_objective(rate: Inferred, config: RunConfig) -> Inferred:
    """Return SFT's learning rate times what the run's objective asks for: its RATE, a tenth where answers are compared."""
    name = config.objective["name"]
    module = registry.load("training.objectives", name)
    ratio = getattr(module, "RATE", COMPARED if hasattr(module, "compares") else 1)
    if ratio == 1:
        return rate
    return Inferred(rate.key, float(f"{ratio * rate.value:.2g}"), f"{rate.reason}, times {ratio:g} for {name}")


def _of_optimizer(rate: Inferred, config: RunConfig) -> Inferred:
    """Return AdamW's learning rate times what the run's optimizer asks for (its RATE)."""
    name = config.optimizer["name"]
    ratio = getattr(registry.load("training.optimizers", name), "RATE", 1)
    if ratio == 1:
        return rate
    return Inferred(rate.key, float(f"{ratio * rate.value:.2g}"), f"{rate.reason}, times {ratio:g} for {name}")


def _memory_settings(config: RunConfig, shape: Shape, machine: Machine, amount: Amount, most: int) -> list[Inferred]:
    """Infer what is recomputed and how many tokens are computed at once from the memory that weights and optimizer leave."""
    train, device = config.train, machine.device
    _check_memory(config, shape, device)
    size = 4 if train.dtype == "float32" else 2
    held = memory.state(shape, size, device, min(most, memory.MOST[device]), train.optimizer_in_backward)
    room = memory.SHARE * max(machine.free_bytes - held.total, 0)
    bytes_ = {c: memory.activation_bytes(shape, size, device, c, _length(amount)) for c in _choices(config, machine)}
    # a step of several micro-batches would add up whole gradients, which is what stepping inside the backward pass is to spare
    asked = train.microbatch_tokens or (most if train.optimizer_in_backward else None)
    fit = memory.fit(bytes_, room, device, amount.longest, most, asked)
    found, (how, offload) = [], fit.choice
    if train.activation_checkpointing is None:
        kept = max(amount.longest, asked or min(memory.ENOUGH[device], most)) * next(iter(bytes_.values()))
        short = f"to keep all would take {_memory(kept)} of {_memory(room)}"
        why = {
            "none": "activations fit into the free memory",
            "selective": f"{short}: feed-forward blocks are computed again",
            "full": f"{short}: every layer is computed again",
        }
        found.append(Inferred("train.activation_checkpointing", how, why[str(how)]))
    if train.activation_offload is None and device == "cuda":
        why_offload = f"even what is recomputed from would take more than {_memory(room)}" if offload else "not needed"
        found.append(Inferred("train.activation_offload", offload, why_offload))
    if train.microbatch_tokens is None:
        why_tokens = f"about {_memory(fit.activations)} of activations, {_memory(room)} are there for them"
        found.append(Inferred("train.microbatch_tokens", fit.tokens, why_tokens))
    return found


def _choices(config: RunConfig, machine: Machine) -> list[Choice]:
    """Return the ways to keep less that are open, the dearer ones later."""
    train = config.train
    asked = train.activation_checkpointing
    hows: tuple[How, ...] = (asked,) if asked else ("none", "selective", "full")
    if machine.device != "cuda" or train.activation_offload is not None:
        return [Choice(how, bool(train.activation_offload)) for how in hows]
    found = [Choice(how) for how in hows]
    return [*found, Choice(hows[-1], True)] if machine.host_bytes and not train.compile else found


def _check_memory(config: RunConfig, shape: Shape, device: str) -> None:
    every = config.train.activation_checkpointing
    if isinstance(every, int) and every > shape.layers:
        raise InputError(
            f"train.activation_checkpointing {every} recomputes every {every}th layer, but the model has {shape.layers}; take at most "
            "that many, or none."
        )
    if config.train.activation_offload and device != "cuda":
        raise InputError(
            f"train.activation_offload moves what layers keep from a GPU's memory to the host's, but this run computes on {device}; "
            "take train.activation_checkpointing: full, or a lower train.microbatch_tokens."
        )


def _most(tokens: int | None, rows: int | None, amount: Amount) -> int:
    """Return how many tokens a step has at most."""
    return max(amount.longest, min(amount.tokens, tokens or (rows or amount.rows) * amount.longest))


def _length(amount: Amount) -> float:
    return amount.tokens / max(amount.rows, 1)


def memory_notice(config: RunConfig, shape: Shape, machine: Machine, amount: Amount) -> str:
    """Return what the resolved run will need at its peak, by what it is for, and what is free; where that is less, what would help."""
    train, device = config.train, machine.device
    size = 4 if train.dtype == "float32" else 2
    choice = Choice(train.activation_checkpointing or "none", bool(train.activation_offload))
    assert train.microbatch_tokens is not None
    most = _most(train.tokens_per_step, train.batch_size, amount)
    tokens = max(min(train.microbatch_tokens, most), amount.longest)
    held = memory.state(shape, size, device, tokens, train.optimizer_in_backward)
    activations = tokens * memory.activation_bytes(shape, size, device, choice, _length(amount))
    parts = {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "activations": activations,
        "output layer": held.head,
    }
    # in a step of one micro-batch gradients come as activations go; those of several add up beside the next one's activations
    total = sum(parts.values()) - (min(activations, held.gradients) if tokens >= most else 0)
    said = {name: f"{name} {_memory(n)}" for name, n in parts.items()}
    said["optimizer"] += f" ({_optimizer_said(config.optimizer['name'], held.optimizer / max(shape.trained, 1))})"
    named = ", ".join(said.values())
    found = f"memory: {named}; at the peak about {_memory(total)}, and {_memory(machine.free_bytes)} are free"
    if total <= machine.free_bytes:
        return found
    return f"{found}; {_remedies(config, shape, size, device, activations if tokens >= most else 0)}"


def _optimizer_said(name: str, each: float) -> str:
    paged = getattr(registry.load("training.optimizers", name), "PAGED", False)
    return f"{name}, {'on the host where the GPU is short' if paged else f'{each:.1f} bytes a trained weight'}"


def _remedies(config: RunConfig, shape: Shape, size: int, device: str, going: float) -> str:
    """Return what would take less, and how much, of what the run does not choose by itself: it changes what is trained, or how.

    going: bytes of activations in whose place gradients come, at whose peak there are none yet.
    """
    found = []
    if shape.trained >= SMALL:
        found.append("adapter: lora trains a hundredth of the weights")
    if config.optimizer["name"] == "adamw" and shape.trained >= SMALL:
        found.append(f"optimizer: adamw_8bit would spare {_memory(6 * shape.trained)}")
    if shape.trained == shape.parameters and not config.train.optimizer_in_backward:
        whole, one = (memory.state(shape, size, device, 0, b).gradients for b in (False, True))
        if (spared := max(whole, going) - max(one, going)) >= 2**20:
            found.append(f"train.optimizer_in_backward: true, with train.clip_norm: false, {_memory(spared)}")
    found.append("a lower train.max_length would too" if found else "lower train.max_length, or take a smaller model")
    return ", ".join(found)


def _power_of_two(x: float) -> int:
    return 1 << max(0, round(math.log2(x)))


def _count(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n / 1e3:.0f}k"


def _memory(n: float) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
