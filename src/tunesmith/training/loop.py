"""The loop: steps of an epoch's order -> micro-batches -> forward, backward, clip, optimizer, schedule, events, checkpoints."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.errors import GuardStop
from tunesmith.model.policy import Policy
from tunesmith.run import Run
from tunesmith.training import checkpoint
from tunesmith.training.batch import Indices, epoch_order, microbatches, steps_of_epoch
from tunesmith.training.optimizers import Masters, load_state_tensors, state_tensors
from tunesmith.training.schedules import factor

# oneDNN keeps 1,024 compiled products, a megabyte each, and every micro-batch has shapes of its own: 1.7 GiB where 0.9 do as well.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

Loss = Callable[[Tensor, Tensor], Tensor]
LOG_EVERY = (
    10  # steps between reading the losses from a device that computes asynchronously; a CPU's are read at every step
)


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal asked the run to stop; its checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


@dataclass(frozen=True)
class Plan:
    """Everything a loop needs to know, resolved: no value is inferred any more."""

    steps: int
    tokens_per_step: int | None
    batch_size: int | None
    microbatch_tokens: int
    learning_rate: float
    schedule: str
    warmup: int
    clip_norm: float
    seed: int
    evaluate_every: int
    checkpoint_every: int
    keep_last: int
    early_stopping: int | None


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
    step_tokens: list[int] = field(default_factory=list)  # of this process, for the throughput
    step_seconds: list[float] = field(default_factory=list)


Rows = Callable[[int], Indices]
"""epoch -> the example numbers that epoch holds, unshuffled (a source of weight 3 has its own thrice)."""


def plan_steps(
    lengths: npt.NDArray[np.int64], rows: Rows, seed: int, tokens: int | None, batch_size: int | None
) -> Iterator[tuple[float, Indices]]:
    """Yield (epochs done after it, example numbers) for every step, without end: a pure function of its arguments."""
    for epoch in range(2**31):
        chosen = rows(epoch)
        taken = 0
        for step in steps_of_epoch(chosen[epoch_order(len(chosen), seed, epoch)], lengths, tokens, batch_size):
            taken += len(step)
            yield epoch + taken / len(chosen), step


def count_steps(
    lengths: npt.NDArray[np.int64], rows: Rows, seed: int, tokens: int | None, batch_size: int | None, epochs: float
) -> int:
    """Return how many steps end within `epochs` epochs, at least 1."""
    count = 0
    for done, _ in plan_steps(lengths, rows, seed, tokens, batch_size):
        if done > epochs + 1e-9:
            break
        count += 1
    return max(1, count)


class Loop:
    """One training run over a policy. `evaluate` returns metrics by name (with "validation_loss"), or {} where nothing is held out."""

    def __init__(
        self,
        run: Run,
        policy: Policy,
        loss: Loss,
        examples: Examples,
        rows: Rows,
        plan: Plan,
        make_optimizer: Callable[[dict[str, Tensor]], torch.optim.Optimizer],
        evaluate: Callable[[], dict[str, Any]],
        fingerprint: str,
    ) -> None:
        self.run, self.policy, self.loss, self.plan = run, policy, loss, plan
        self.examples, self.rows, self.evaluate, self.fingerprint = examples, rows, evaluate, fingerprint
        self.device = next(policy.parameters()).device
        self.masters = Masters(policy)
        self.optimizer = make_optimizer(self.masters.masters)
        self.progress = Progress()
        self.scored = np.add.reduceat(examples.scored.astype(np.int64), examples.offsets[:-1])
        self._pending: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        self._signal: int | None = None

    def train(self) -> Progress:
        """Run to the last step, or to where early stopping, a guard or a signal ends it; the policy holds the result."""
        p, plan = self.progress, self.plan
        self.policy.train()
        source = plan_steps(self.examples.lengths, self.rows, plan.seed, plan.tokens_per_step, plan.batch_size)
        for _ in range(p.step):
            next(source)
        with self._signals():
            if p.step == 0 and not p.metrics:
                self._evaluate()
            while p.step < plan.steps and not self._stopped_early():
                epoch, rows = next(source)
                self._step(epoch, rows)
                last = p.step == plan.steps
                if p.step % plan.evaluate_every == 0 or last:
                    self._evaluate()
                if p.step % plan.checkpoint_every == 0 or last:
                    self.save()
                if self._signal is not None:
                    self.save()
                    raise Interrupted(self._signal)
        self._flush()
        if plan.early_stopping and p.best_step not in (None, p.step):
            self._restore_best()
        return p

    def _stopped_early(self) -> bool:
        p, patience = self.progress, self.plan.early_stopping
        if patience is None or p.since_best < patience:
            return False
        self.run.emit("notice", message=f"stopped early: no better validation loss in {p.since_best} evaluations")
        return True

    def _step(self, epoch: float, rows: Indices) -> None:
        """One optimizer step: the sum of the rows' losses over the step's scored tokens, whatever the micro-batches."""
        began = time.perf_counter()
        p, plan = self.progress, self.plan
        rate = plan.learning_rate * factor(plan.schedule, p.step, plan.steps, plan.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scored = int(self.scored[rows].sum())
        self.masters.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch in microbatches(self.examples, rows, plan.microbatch_tokens):
            moved = batch.to(self.device)
            loss = self.loss(self.policy(moved), moved.weights) / scored
            loss.backward()
            total += loss.detach()
        self.masters.fill_missing_grads()
        norm = torch.nn.utils.clip_grad_norm_(self.masters.masters.values(), plan.clip_norm)
        self.optimizer.step()
        self.masters.refresh()
        p.step += 1
        tokens = int(self.examples.lengths[rows].sum())
        p.tokens += tokens
        p.scored_tokens += scored
        facts = {
            "step": p.step,
            "epoch": round(epoch, 4),
            "learning_rate": rate,
            "tokens": tokens,
            "scored_tokens": scored,
        }
        self._pending.append((facts, total, norm))
        if self.device.type == "cpu" or len(self._pending) >= LOG_EVERY:
            self._flush(began)
        else:
            self._clock(began, tokens)

    def _clock(self, began: float, tokens: int) -> float:
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        self.progress.step_seconds.append(seconds)
        self.progress.step_tokens.append(tokens)
        return seconds

    def _flush(self, began: float | None = None) -> None:
        """Read the losses of the steps since the last time from the device (the only synchronisation) and write their events."""
        import psutil

        if not self._pending:
            return
        waited = time.perf_counter()
        numbers = torch.stack([torch.stack((a.float(), b.float())) for _, a, b in self._pending]).tolist()
        if began is not None:
            self._clock(began, self._pending[-1][0]["tokens"])
        else:  # between steps: the wait belongs to the steps that are waited for
            waited = time.perf_counter() - waited
            self.progress.seconds += waited
            self.progress.step_seconds[-1] += waited
        n = len(self._pending)
        # On an asynchronous device the time shows where it is waited for: share it among the steps it is for.
        seconds = sum(self.progress.step_seconds[-n:]) / n
        memory = peak_memory(self.device)
        processor = psutil.cpu_percent()
        for (facts, _, _), (loss, norm) in zip(self._pending, numbers, strict=True):
            self.run.emit(
                "step",
                **facts,
                loss=loss if math.isfinite(loss) else None,
                grad_norm=norm if math.isfinite(norm) else None,
                seconds=round(seconds, 5),
                tokens_per_second=round(facts["tokens"] / seconds, 1),
                memory_bytes=memory,
                cpu_percent=processor,
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise GuardStop(
                    f"step {facts['step']}: the {'loss' if not math.isfinite(loss) else 'gradient'} is no finite number at learning "
                    f"rate {facts['learning_rate']:.2g}; lower optimizer.learning_rate. The checkpoints before it are kept."
                )
            self.progress.train_loss = loss
        self._pending.clear()

    def _evaluate(self) -> None:
        self._flush()
        p = self.progress
        p.metrics = self.evaluate()
        if not p.metrics:
            return
        self.run.emit("evaluate", step=p.step, metrics=p.metrics)
        value = p.metrics["validation_loss"]["value"]
        if p.best is None or value < p.best:
            p.best, p.best_step, p.since_best = value, p.step, 0
            if self.plan.early_stopping:
                self.save()  # the result may be this one
        else:
            p.since_best += 1

    def save(self) -> None:
        """Write a checkpoint of everything a bit-exact continuation needs, and drop those no longer kept."""
        self._flush()  # a loss that is no number stops the run before it is saved
        p = self.progress
        tensors = {
            "trained": self.masters.masters,
            "optimizer": state_tensors(self.optimizer, self.masters.masters),
            "random": checkpoint.rng_state(),
        }
        facts = {k: v for k, v in vars(p).items() if k not in ("step_tokens", "step_seconds")}
        folder = self.run.folder / "checkpoints"
        path = checkpoint.save(folder, p.step, tensors, {"progress": facts, "data": self.fingerprint})
        checkpoint.prune(folder, self.plan.keep_last, p.best_step)
        self.run.emit("checkpoint", step=p.step, path=str(path.relative_to(self.run.folder)))

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint found whole."""
        tensors, state = checkpoint.load(path)
        self.masters.load(tensors["trained"])
        load_state_tensors(self.optimizer, self.masters.masters, tensors["optimizer"])
        checkpoint.set_rng_state(tensors["random"])
        self.progress = Progress(**state["progress"])

    def _restore_best(self) -> None:
        p = self.progress
        path = self.run.folder / "checkpoints" / f"step-{p.best_step}"
        if path.is_dir():
            tensors, state = checkpoint.load(path)
            self.masters.load(tensors["trained"])
            p.metrics = state["progress"]["metrics"]
            self.run.emit(
                "notice", message=f"the result is step {p.best_step}, the best by validation loss ({p.best:.4f})"
            )

    def _signals(self) -> "_Signals":
        return _Signals(self)


class _Signals:
    """SIGINT and SIGTERM end the run after the step under way, with a checkpoint; a second SIGINT ends it at once."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.loop._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.loop._signal = number


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: the GPU's allocator's, or on the CPU the process's resident peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
