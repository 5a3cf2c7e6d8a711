"""What a run needs at its peak, and what is recomputed or computed at once for it to fit into the free memory.

Per token a layer of width d, feed-forward width f, queries q and keys k keeps 4 d + 2 q + 2 k + 3 f numbers for the backward pass, and
on a CPU the probabilities of attention. Beside that are the numbers one layer has at hand in its backward, what the output layer
needs, and the state of training. docs/design/memory.md compares this with what processes took: within a fifth.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tunesmith.training.infer import Shape

How = Literal["none", "selective", "full"] | int
ENOUGH = {"cpu": 512, "cuda": 4096, "mps": 2048}  # tokens of a micro-batch below which a device works markedly slower
MOST = {"cpu": 2048, "cuda": 16384, "mps": 4096}  # tokens beyond which it gains nothing
SHARE = 0.75  # of what the state of training leaves, given to activations: the rest is for what no rule foresees
AT_HAND = 2.3  # times 8 d + 3 f numbers a token: what a layer's backward has at hand beside what was kept, as measured
LONG = 1024  # keys beyond which attention on a CPU keeps no probabilities (model.attention_cpu)
RESIDUALS = 256 * 2**20  # bytes of residuals that a trained output layer keeps (model.head)


RAN_OUT = (  # in the words of torch's CPU allocator, of the CUDA driver and of its libraries
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class Choice(NamedTuple):
    """One way to keep less: what is recomputed, and whether what is kept goes to the host's memory."""

    how: How
    offload: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What training holds beside activations, in bytes: weights (with masters), gradients, the optimizer's state, the output layer's work.

    gradients: at their most, one parameter's where the optimizer steps inside the backward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    head: float

    @property
    def total(self) -> float:
        """The bytes of all of it."""
        return self.weights + self.gradients + self.optimizer + self.head


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen, the tokens of a micro-batch, and the bytes behind it: activations, and memory free for them."""

    choice: Choice
    tokens: int
    activations: float
    room: float


def activation_bytes(shape: "Shape", size: int, device: str, choice: Choice, length: float = 0) -> float:
    """Return the bytes one token takes at the peak, in numbers of `size` bytes, in rows of `length` tokens on average."""
    probabilities = shape.heads * length if device == "cpu" and length <= LONG else 0
    block = (3 if device == "cpu" else 2) * shape.feedforward
    layer = 4 * shape.width + (shape.attention or 4 * shape.width) + probabilities + block
    n, how = shape.layers, choice.how
    recomputed = n if how == "full" else n // how if isinstance(how, int) else 0
    kept = (n - recomputed) * layer + recomputed * shape.width + (layer if recomputed else 0)
    if how == "selective":
        kept = n * (layer - block) + block
    if choice.offload:  # what is on its way out, and the last layers
        from tunesmith.model.offload import AHEAD

        kept *= min(1.0, 2 * (AHEAD + 1) / n)
    return size * (kept + AT_HAND * (8 * shape.width + 3 * shape.feedforward))


def state(shape: "Shape", size: int, device: str, tokens: int, in_backward: bool = False) -> State:
    """Return what training holds with trained weights that have fp32 masters, unless `size` is 4, and gradients in fp32.

    tokens: of a micro-batch, of which all may be scored.

    shape.weights is what the weights take where they are quantised, shape.optimizer what the optimizer's state takes on the device.
    """
    output = shape.vocabulary * shape.width
    weights = shape.parameters * size if shape.weights is None else shape.weights
    gradients = 4 * (min(shape.trained, output) if in_backward else shape.trained)
    optimizer = 8 * shape.trained if shape.optimizer is None else shape.optimizer
    masters = 0 if size == 4 else 4 * shape.trained
    rows = 512 if device == "cpu" else max(256, 2**28 // shape.vocabulary)
    work = min(rows, tokens) * shape.vocabulary * (size if device == "cpu" else size + 4)
    if device == "cpu":
        work += 2 * output * size  # products on a CPU lay the weight out anew, in either direction
    if shape.trains_output:
        # dW, and the residuals, which are kept as long as they are less than a sum of their products in fp32 would be
        work += output * size + min(max(RESIDUALS, output * (4 + size)), tokens * shape.vocabulary * size)
    return State(weights + masters, gradients, optimizer, work)


def fit(per_token: dict[Choice, float], room: float, device: str, longest: int, most: int, asked: int | None) -> Fit:
    """Return the first of the choices, dearer ones later, with which a micro-batch worth having (or the asked one) fits into `room` bytes.

    most: tokens a micro-batch can have at all (a step). It holds at least the longest example, whether or not that fits.
    """
    wanted = max(longest, asked or min(ENOUGH[device], most))
    last = list(per_token)[-1]
    choice = next((c for c, bytes_ in per_token.items() if bytes_ * wanted <= room), last)
    tokens = asked or max(longest, min(most, MOST[device], int(room / per_token[choice])))
    return Fit(choice, tokens, tokens * per_token[choice], room)


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory, the host's or the device's, ran out."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in RAN_OUT)


SENTENCE = (
    "memory does not suffice for this run, and it was not a micro-batch that could be halved: take adapter: lora, set "
    "train.activation_checkpointing: full, lower train.max_length, or take a smaller model."
)
"""What to say of an error that `ran_out` finds to be one, wherever nothing smaller can be tried."""
