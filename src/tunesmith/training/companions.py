"""What takes part in every step beside the objective: an adapter's own bookkeeping, a pull towards the base model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.model.policy import Policy
    from tunesmith.training.batch import FlatBatch
    from tunesmith.training.masters import Masters


class Companion:
    """Its methods do nothing; one that takes part overrides what it needs. The loop calls them in this order, at every step.

    What `state` returns is all that a bit-exact continuation needs beyond the trained weights. `sums` are tensors that `loss` adds to:
    zero before a step's first micro-batch (again where memory ran out), and in `after_step` of the whole step, on all processes.
    """

    sums: "tuple[Tensor, ...]" = ()

    def check(self, steps: int) -> None:
        """InputError where a run of `steps` steps is none for it; called before any weight is loaded."""

    def begin(self, policy: "Policy", masters: "Masters", steps: int) -> str | None:
        """Called once, before the first step or the checkpoint of a resumed run is read: the run has `steps` steps. Every process has
        the same weights then.

        Returns a sentence for people on what it costs, if anything.
        """
        return None

    def loss(self, policy: "Policy", batch: "FlatBatch") -> "Tensor | None":
        """Return what is added to the objective's sum over the batch's targets, (), with gradients; called after the policy's forward."""
        return None

    def regularizer(self) -> "Tensor | None":
        """Return what is added to the step's mean loss, (), with gradients to the model's parameters; called once a step."""
        return None

    def after_step(self, step: int, rate: float, skipped: "Tensor") -> dict[str, Any]:
        """Called when step `step` (from 1) was made at that learning rate; return facts for its event.

        A fact may be a tensor (), which is read when the step's loss is: the device is not waited for.

        skipped () is not 0 where nothing was updated. The masters still hold the step's gradients as the optimizer took them, unscaled and
        clipped. What it changes in the masters reaches the model right after.
        """
        return {}

    def state(self) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Return tensors (for safetensors) and plain data (for JSON)."""
        return {}, {}

    def load(self, tensors: "dict[str, Tensor]", facts: dict[str, Any]) -> None:
        """The inverse of `state`."""
