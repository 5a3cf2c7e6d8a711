"""Where a run stands, and what is told of its steps once the device has finished them: events, counts, and whether to stop."""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.run import Run
from tunesmith.training.batch import Indices
from tunesmith.training.guard import GOOD, GROWN, MARGIN, OVERFLOW, PART, REASONS, ceiling, largest
from tunesmith.training.masters import Masters

NAMED = 3  # rows of a skipped step that are named
SAMPLED = 1.0  # seconds between looks at the processor's load


@dataclass
class Progress:
    """Where the run stands; all of it is in every checkpoint."""

    step: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    train_loss: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    microbatch_tokens: int | None = None  # where memory ran out: what the run goes on with
    skipped: int = 0  # steps that changed nothing
    bad_steps: int = 0  # in a row, up to now: skipped, or with a loss beyond the ceiling
    bad_since: int | None = None  # the first of them
    diverging: bool = False  # the last finite loss is beyond the ceiling
    first_loss: float | None = None
    largest_norm: float | None = None  # of the trained weights, beyond which they are lost
    step_tokens: list[int] = field(default_factory=list)  # of this process, for the throughput
    step_seconds: list[float] = field(default_factory=list)


class Journal:
    """The steps since the last reading. rate: the run's peak learning rate; uniform: the loss of a model that knows nothing."""

    def __init__(
        self, run: Run, device: torch.device, masters: Masters, examples: Examples, rate: float, uniform: float
    ) -> None:
        self.run, self.device, self.masters, self.examples = run, device, masters, examples
        self.rate, self.uniform = rate, uniform
        self._pending: list[tuple[dict[str, Any], Indices, Tensor]] = []
        self._because = ""  # why the last step that was skipped was
        self._load: tuple[float, float] = (-math.inf, 0.0)  # when it was looked at, and what it was

    def add(self, facts: dict[str, Any], rows: Indices, outcome: Tensor) -> None:
        """Note a step that is under way: its event's fields, its rows, and Stepper.step's outcome."""
        self._pending.append((facts, rows, outcome))

    def begin(self, p: Progress) -> None:
        """Remember what the weights are like before the first step."""
        masters = list(self.masters.masters.values())
        p.largest_norm = largest(float(self.masters.norm()), sum(m.numel() for m in masters))

    def read(self, p: Progress, began: float | None, most: int) -> str | None:
        """Read the steps since the last time from the device (the only synchronisation), write their events and count.

        `began` is when the last step began, None between steps. Returns why the run must stop: `most` steps in a row were bad.
        """
        if not self._pending:
            return None
        waited = time.perf_counter()
        numbers = torch.stack([outcome for _, _, outcome in self._pending]).tolist()
        if began is not None:
            clock(p, began, self._pending[-1][0]["tokens"])
        else:  # between steps: the wait belongs to the steps that are waited for
            waited = time.perf_counter() - waited
            p.seconds += waited
            p.step_seconds[-1] += waited
        why = self._tell(p, numbers, most)
        self._pending.clear()
        return why

    def weigh(self, p: Progress) -> str | None:
        """Return why the run must stop, where the trained weights are lost; waits for the device."""
        norm = float(self.masters.norm())
        if p.largest_norm is None or norm <= p.largest_norm:  # a norm that is no number is not
            return None
        p.diverging = True
        return (
            f"training diverged at learning rate {self.rate:g}: at step {p.step} the trained weights' norm is {norm:.2g}, more than "
            f"{GROWN:g} times that at the start"
        )

    def _tell(self, p: Progress, numbers: list[list[float]], most: int) -> str | None:
        """Tell of every pending step and count it, up to the one that ends the run: those after it were only under way."""
        n = len(self._pending)
        # On an asynchronous device the time shows where it is waited for: share it among the steps it is for.
        seconds = sum(p.step_seconds[-n:]) / n
        memory, processor = peak_memory(self.device), self._processor()
        why = None
        for (facts, rows, _), (loss, norm, verdict) in zip(self._pending, numbers, strict=True):
            self.run.emit(
                "step",
                **{key: float(fact) if isinstance(fact, Tensor) else fact for key, fact in facts.items()},
                loss=loss,
                grad_norm=norm,
                seconds=round(seconds, 5),
                tokens_per_second=round(facts["tokens"] / seconds, 1),
                memory_bytes=memory,
                cpu_percent=processor,
            )
            if verdict != GOOD:
                self._tell_skipped(facts["step"], rows, int(verdict))
            if why is None:
                self._count(p, facts["step"], loss, int(verdict))
                why = self.why(p, facts["step"]) if p.bad_steps >= most else None
        return why

    def _tell_skipped(self, step: int, rows: Indices, verdict: int) -> None:
        named: list[str] = []
        if verdict != OVERFLOW and len(self.examples.origins):  # an overflow is no row's fault
            named = list(dict.fromkeys(str(self.examples.origins[r]) for r in self.examples.row_record[rows]))
        more = len(named[NAMED:])
        where = f" ({'; '.join(named[:NAMED])}{f'; and {more} more' if more else ''})" if named else ""
        self._because = REASONS[verdict] + where
        done = "changed a part of the weights only" if verdict == PART else "changed nothing"
        message = f"step {step} {done}, because {self._because}"
        self.run.emit("skipped", step=step, message=message, rows=named[:NAMED], more_rows=more)

    def _count(self, p: Progress, step: int, loss: float, verdict: int) -> None:
        p.skipped += verdict != GOOD
        if verdict == OVERFLOW:
            return  # part of finding the scale: neither good nor bad
        if math.isfinite(loss):
            p.first_loss = loss if p.first_loss is None else p.first_loss
            p.diverging = loss > ceiling(p.first_loss, self.uniform)
        if verdict == GOOD:
            p.train_loss = loss
        if verdict != GOOD or p.diverging:
            p.bad_steps += 1
            p.bad_since = step if p.bad_since is None else p.bad_since
        else:
            p.bad_steps, p.bad_since = 0, None

    def why(self, p: Progress, step: int) -> str:
        """Return what is wrong with the bad steps up to `step`."""
        steps = f"step {step}" if p.bad_since == step else f"steps {p.bad_since} to {step}"
        if not p.diverging:
            return f"{steps} changed nothing at learning rate {self.rate:g}, the last because {self._because}"
        limit = ceiling(p.first_loss or 0.0, self.uniform)
        return (
            f"training diverged at learning rate {self.rate:g}: in {steps} the loss is above {limit:.3g}, {MARGIN:g} times what it was "
            "at the start or would be without any knowledge"
        )

    def _processor(self) -> float:
        """Return the machine's load in percent since the last look, looked at once a second at most."""
        import psutil

        at, _ = self._load
        if time.monotonic() - at >= SAMPLED:
            self._load = time.monotonic(), psutil.cpu_percent()
        return self._load[1]


def clock(p: Progress, began: float, tokens: int) -> None:
    """Add a step of `tokens` that began at `began` (time.perf_counter) and ends now."""
    seconds = time.perf_counter() - began
    p.seconds += seconds
    p.step_seconds.append(seconds)
    p.step_tokens.append(tokens)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: the GPU's allocator's, or on the CPU the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
