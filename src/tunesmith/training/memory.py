"""How much a step keeps, and what is recomputed for it to fit: activation checkpointing and micro-batch chosen from the free memory.

Per token a layer of width d and feed-forward width f keeps about 8 d + 3 f numbers for the backward pass (inputs of norms and
products, queries, keys, values, gate and its product), and half as much again for what is transient. Measured by counting what
autograd keeps (135M shape, bf16, rows of 200 tokens): 26 to 28 kB a layer, 14 to 16 where the feed-forward block is computed
again, 1.2 where the layer is; the rule says 27.6, 13.8 and 1.2.
"""

from dataclasses import dataclass
from typing import Literal

How = Literal["none", "selective", "full"]
ENOUGH = {"cpu": 512, "cuda": 4096, "mps": 2048}  # tokens of a micro-batch below which a device works markedly slower
MOST = {"cpu": 2048, "cuda": 16384, "mps": 4096}  # tokens beyond which it gains nothing
SHARE = (
    0.5  # of the memory that weights and optimizer leave, given to activations: the rest is for what no rule foresees
)


RAN_OUT = (  # in the words of torch's CPU allocator, of the CUDA driver and of its libraries
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True, slots=True)
class Fit:
    """What is recomputed, the tokens of a micro-batch, and the bytes behind it: activations, and memory free for them."""

    how: How
    tokens: int
    activations: float
    room: float


def activation_bytes(width: int, feedforward: int, layers: int, size: int, how: How) -> float:
    """Return the bytes one token keeps until the backward pass, in numbers of `size` bytes; for "full" with one layer at work."""
    if how == "none":
        return 1.5 * size * layers * (8 * width + 3 * feedforward)
    if how == "selective":
        return 1.5 * size * layers * 8 * width
    return size * layers * width + 1.5 * size * (8 * width + 3 * feedforward)


def state_bytes(parameters: int, trained: int, size: int) -> int:
    """Return the bytes of weights, gradients, moments (fp32), and masters where the weights are not fp32 themselves."""
    return parameters * size + trained * (12 if size == 4 else 16)


def fit(per_token: dict[How, float], room: float, device: str, longest: int, most: int, asked: int | None) -> Fit:
    """Return the first of none, selective, full with which a micro-batch worth having (or the asked one) fits into `room` bytes.

    most: tokens a micro-batch can have at all (a step). It holds at least the longest example, whether or not that fits.
    """
    wanted = max(longest, asked or min(ENOUGH[device], most))
    how: How = next((h for h, bytes_ in per_token.items() if bytes_ * wanted <= room), "full")
    tokens = asked or max(longest, min(most, MOST[device], int(room / per_token[how])))
    return Fit(how, tokens, tokens * per_token[how], room)


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory, the host's or the device's, ran out."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in RAN_OUT)


SENTENCE = (
    "memory does not suffice for this run, and it was not a micro-batch that could be halved: take adapter: lora, set "
    "train.activation_checkpointing: full, lower train.max_length, or take a smaller model."
)
"""What to say of an error that `ran_out` finds to be one, wherever nothing smaller can be tried."""
