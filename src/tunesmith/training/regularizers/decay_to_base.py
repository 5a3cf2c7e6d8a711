"""Weight decay towards the start instead of towards zero: w <- w - eta lambda (w - w_0) after every step, eta the learning rate.

L2-SP (Li et al., 2018, arXiv 1802.01483, eq. 2), decoupled from the gradient as AdamW's decay is (Loshchilov & Hutter, 2019), so that
Adam's scaling does not undo it. LoRA's B begins at zero: its pull is towards the base model itself.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.training.companions import Companion

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.model.policy import Policy
    from tunesmith.training.masters import Masters


def make(*, weight: Annotated[float, Field(gt=0)] = 0.1) -> Companion:
    """Return the pull, of strength lambda = `weight` per unit of learning rate. It costs an fp32 copy of what is trained."""
    return _Decay(weight)


class _Decay(Companion):
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, policy: "Policy", masters: "Masters", steps: int) -> str:
        from tunesmith.evaluation.report_format import memory

        self.masters = masters.masters
        self.start = {name: m.detach().clone() for name, m in self.masters.items()}
        return f"decay_to_base keeps what is trained as it began: {memory(sum(t.nbytes for t in self.start.values()))}"

    def after_step(self, step: int, rate: float, skipped: "Tensor") -> dict[str, Any]:
        import torch

        share = min(rate * self.weight, 1.0) * (1 - skipped)  # beyond 1 it would end on the other side
        squares = []
        with torch.no_grad():
            for name, master in self.masters.items():
                away = master - self.start[name]
                squares.append(away.square().sum())
                master.sub_(away * share)
        return {"distance_to_base": torch.stack(squares).sum().sqrt()}

    def state(self) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        return self.start, {}

    def load(self, tensors: "dict[str, Tensor]", facts: dict[str, Any]) -> None:
        for name, start in self.start.items():
            start.copy_(tensors[name])
