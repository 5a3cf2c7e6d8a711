"""The guard: which steps may change the model, decided on the device; and which runs of bad steps end a run.

A step is skipped where its loss or gradient norm is no finite number, or a spike. The rule for spikes is OLMo's (2 OLMo 2 Furious,
2025, arXiv 2501.00656: beyond mean + 6 standard deviations of the last 128 steps) on logarithms, because losses and norms of small
batches are skewed, and a spike is at least a doubling. Nothing is read by the host: a verdict is a number on the device, which the
loop reads with the losses.
"""

import math

import torch
from torch import Tensor

WINDOW, ACTIVE, SIGMAS = 128, 64, 6.0  # steps that are remembered, steps before the rule holds, standard deviations
LEAST = math.log(2)  # no spike is less than a doubling
GROWTH_STEPS = 2000  # clean steps before fp16's loss scale is doubled

GOOD, LOSS, GRADIENT, SPIKE, OVERFLOW, PART = range(6)
REASONS = {
    LOSS: "its loss is no finite number",
    GRADIENT: "its gradient is no finite number",
    SPIKE: "its loss or gradient is a spike",
    OVERFLOW: "its gradient overflowed in float16, and the loss scale is halved",
    PART: "some of its gradients are no finite numbers",
}

MARGIN = 1.5  # a loss this many times above all that is plausible has left it
GROWN = 100.0  # so many times their norm at the start no training makes the weights
SMALLEST = 0.01  # root mean square of a weight that counts as the start where it began smaller: LoRA's B begins at 0


class Guard:
    """The verdicts over a run's steps, and float16's loss scale (Micikevicius et al., 2018, arXiv 1710.03740); 1 where not `scaled`.

    The scale is halved, down to 1, by a gradient that is no finite number, and doubled after 2,000 steps without.
    """

    def __init__(self, device: torch.device, scaled: bool) -> None:
        self.scaled = scaled
        self.window = torch.zeros(2, WINDOW, device=device)  # logarithms of the loss and the gradient norm
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        self.scale = torch.full((), 2.0**16 if scaled else 1.0, device=device)
        self.clean = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(WINDOW, device=device)

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Return GOOD, LOSS, GRADIENT, SPIKE or OVERFLOW as a float32 (), and remember the step. Waits for nothing."""
        numbers = torch.stack((loss.float(), norm.float()))
        finite = torch.isfinite(numbers)
        logs = _logarithms(numbers)
        verdict = torch.where(self._spike(logs), float(SPIKE), float(GOOD))
        not_finite = torch.where(self.scale > 1, float(OVERFLOW), float(GRADIENT)) if self.scaled else float(GRADIENT)
        verdict = torch.where(finite[1], verdict, not_finite)
        verdict = torch.where(finite[0], verdict, float(LOSS))
        known = finite.all()
        self.window = torch.where(known & (self._places == self.seen % WINDOW), logs[:, None], self.window)
        self.seen = self.seen + known
        if self.scaled:
            self._rescale(finite[1])
        return verdict

    def foresee(self, loss: Tensor) -> Tensor:
        """Return 1 where the loss alone condemns a step, else 0, as a float32 (); nothing is remembered."""
        known = torch.stack((loss.float(), torch.zeros_like(loss, dtype=torch.float32)))  # of the norm nothing is known
        return (~torch.isfinite(loss) | self._spike(_logarithms(known))).float()

    def judge_late(self, loss: Tensor, norm: Tensor, skipped: Tensor) -> Tensor:
        """Judge a step that was made unless `skipped` (), what `foresee` returned: as `judge`, but PART for a gradient, and no SPIKE.

        Parameters with finite gradients are changed by then.
        """
        verdict = self.judge(loss, norm)
        made = torch.where(verdict == GRADIENT, float(PART), torch.where(verdict == SPIKE, float(GOOD), verdict))
        return torch.where(skipped != 0, verdict, made)

    def _spike(self, logs: Tensor) -> Tensor:
        known = (self._places < self.seen) & ~self.window.isnan()
        n, window = known.sum(1).clamp(min=1), self.window.nan_to_num()
        mean = window.sum(1) / n
        deviation = ((window**2).sum(1) / n - mean**2).clamp(min=0).sqrt()
        return ((logs - mean > (SIGMAS * deviation).clamp(min=LEAST)) & (n >= ACTIVE)).any()

    def _rescale(self, finite: Tensor) -> None:
        self.clean = torch.where(finite, self.clean + 1, 0)
        grown = torch.where(self.clean == GROWTH_STEPS, 2 * self.scale, self.scale)
        self.scale = torch.where(finite, grown, (self.scale / 2).clamp(min=1))
        self.clean = self.clean % GROWTH_STEPS

    def state(self) -> dict[str, Tensor]:
        """Return what later verdicts depend on, for a checkpoint."""
        return {"window": self.window, "seen": self.seen, "scale": self.scale, "clean": self.clean}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of state."""
        for name, value in state.items():
            setattr(self, name, value.to(self._places.device))


def _logarithms(numbers: Tensor) -> Tensor:
    """Return log x, NaN of what has none: a loss may be 0 (hinge) or below (robust), of which no spike can be told."""
    return numbers.where(numbers > 0, torch.nan).log()


def ceiling(first: float, uniform: float) -> float:
    """Return the loss beyond which a step is bad: 1.5 times the larger of the run's first and that of a model that knows nothing."""
    return MARGIN * max(first, uniform)


def largest(norm: float, count: int) -> float:
    """Return the norm beyond which `count` weights that began with `norm` have left all that training does to them."""
    return GROWN * max(norm, SMALLEST * math.sqrt(count))
