"""The loop: steps of an epoch's order -> micro-batches -> one optimizer step each, schedule, guard, events, checkpoints, evaluation."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.errors import GuardStop, InputError, Interrupted, ProcessLost
from tunesmith.model.policy import Policy
from tunesmith.run import Run
from tunesmith.training import checkpoint
from tunesmith.training.batch import FlatBatch, Indices
from tunesmith.training.companions import Companion
from tunesmith.training.guard import Guard
from tunesmith.training.journal import Journal, Progress, clock
from tunesmith.training.masters import Masters, Optimizers, evaluated, load_state_tensors, settle, state_tensors
from tunesmith.training.objective import Objective
from tunesmith.training.parallel import ALONE, World, checksum, load
from tunesmith.training.plan import Plan, Rows, plan_steps
from tunesmith.training.prefetch import prefetched
from tunesmith.training.schedules import factor
from tunesmith.training.step import Stepper
from tunesmith.training.writer import Writer

# oneDNN keeps 1,024 compiled products, up to a megabyte each. Micro-batches filled up to multiples of 64 tokens have few shapes, of
# which 512 come round again (measured on the starter: a quarter faster than 128, as fast as 1,024).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")

LOG_EVERY = 10  # steps between reading the losses of an asynchronous device; a CPU's are read at every step


class Work(NamedTuple):
    """A step to be done: epochs done after it, its rows, this process's of them, in micro-batches of at most `capacity` tokens."""

    epoch: float
    rows: Indices
    mine: Indices
    capacity: int
    batches: list[FlatBatch]


class Loop:
    """One training run over a policy. `evaluate` returns metrics by name (with "validation_loss"), or {} where nothing is held out."""

    def __init__(
        self,
        run: Run,
        policy: Policy,
        objective: Objective,
        examples: Examples,
        rows: Rows,
        plan: Plan,
        make_optimizer: Callable[[dict[str, Tensor]], Optimizers],
        evaluate: Callable[[], dict[str, Any]],
        fingerprint: str,
        world: World = ALONE,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.run, self.policy, self.plan, self.world = run, policy, plan, world
        self.examples, self.rows, self.evaluate, self.fingerprint = examples, rows, evaluate, fingerprint
        first = next(policy.parameters())
        self.device = first.device
        self.masters = Masters(policy)
        self.optimizer = make_optimizer(self.masters.masters)
        self.guard = Guard(self.device, scaled=first.dtype == torch.float16)
        self.stepper = Stepper(
            policy, objective, self.masters, self.optimizer, self.guard, examples, plan.microbatch_tokens, plan.clip_norm,
            say=lambda sentence: run.emit("notice", message=sentence), world=world, companions=companions,
        )  # fmt: skip
        vocabulary = policy.transformer.config.get_text_config().vocab_size
        unknowing = max(math.log(vocabulary), objective.unknowing(examples))
        self.journal = Journal(run, self.device, self.masters, examples, plan.learning_rate, unknowing)
        self.progress = Progress()
        # the newest is proven good by the losses after it; until then the one before is not deleted
        self.writer = Writer(run.folder / "checkpoints", max(2, plan.keep_last))
        self.objective, self.lengths = objective, examples.row_lengths
        self.measured: dict[str, Any] | None = None  # what `evaluate` returned, or would, of the policy as it is
        self._signal: int | None = None

    def begin_companions(self) -> None:
        """Let the companions look at the start, and tell what they cost; once, before `train` and `resume`, with the weights agreed on."""
        for companion in self.stepper.companions:
            if cost := companion.begin(self.policy, self.masters, self.plan.steps):
                self.run.emit("notice", message=cost)

    def train(self) -> Progress:
        """Run to the last step, or to where early stopping, a guard or a signal ends it; the policy holds the result."""
        p, plan = self.progress, self.plan
        self.policy.train()
        with self._signals(), self._writing(), closing(prefetched(self._steps())) as steps:
            if p.step == 0:
                self._begin()
            while p.step < plan.steps and not self._stopped_early():
                self._step(steps)
                stop = self._asked_to_stop()
                self._tell_written()
                last = p.step == plan.steps
                if p.step % plan.evaluate_every == 0 or last:
                    self._evaluate()
                    stop = stop or self._asked_to_stop()
                if p.step % plan.checkpoint_every == 0 or last or stop:
                    self._save_if_good()
                if stop:
                    raise self._interrupted(stop)
            self._read()
            better = bool(plan.early_stopping) and p.best_step not in (None, p.step)
            if p.diverging and not better:
                raise GuardStop(f"{self.journal.why(p, p.step)}; {self._keep_good()}.")
        if stop := self._asked_to_stop():  # while the last checkpoint was written
            raise self._interrupted(stop)
        if better:
            self._restore_best()
        settle(self.optimizer, self.masters)
        return p

    def _steps(self) -> Iterator[Work]:
        """Yield the steps that are left; runs in a thread of its own, ahead of the steps."""
        plan = self.plan
        order = plan_steps(self.lengths, self.rows, plan.seed, plan.tokens_per_step, plan.batch_size, plan.difficulty)
        for epoch, rows in islice(order, self.progress.step, plan.steps):
            capacity = self.stepper.capacity
            mine = rows[self.world.share(self.lengths[rows])]
            yield Work(epoch, rows, mine, capacity, self.stepper.batches(mine))

    def _begin(self) -> None:
        """Measure the start and save it: it is the last good state until there is a better one."""
        self.journal.begin(self.progress)
        if not self.progress.metrics:
            self._evaluate()
        self.save()

    def _asked_to_stop(self) -> int:
        """Return the signal that any process was sent, 0 without. Every process then packs as the one with the least memory does."""
        stop, capacity = self.world.most(self._signal or 0, -self.stepper.capacity)
        if -capacity < self.stepper.capacity:
            said = f"memory ran out in another process; the run goes on with {-capacity:,} tokens at most"
            self.run.emit("notice", message=said)
        self.stepper.capacity = -capacity
        if -capacity < self.plan.microbatch_tokens:
            self.progress.microbatch_tokens = -capacity
        return stop

    def _interrupted(self, number: int) -> Interrupted:
        """Return what ends the run, with what is true of its checkpoint once the writer is done."""
        found = Interrupted(number)
        kept = "a checkpoint is written"
        if self.progress.diverging:
            kept = f"step {self.progress.step} is not saved, for its loss is beyond bounds; the checkpoints before are kept"
        found.args = (f"{found}; {kept}",)
        return found

    def _stopped_early(self) -> bool:
        p, patience = self.progress, self.plan.early_stopping
        if patience is None or p.since_best < patience:
            return False
        self.run.emit("notice", message=f"stopped early: no better validation loss in {p.since_best} evaluations")
        return True

    def _step(self, steps: Iterator[Work]) -> None:
        began = time.perf_counter()
        p, plan = self.progress, self.plan
        epoch, rows, mine, capacity, batches = next(steps)
        if capacity > self.stepper.capacity:  # they were made before memory ran out
            batches = self.stepper.batches(mine)
        rate = plan.learning_rate * factor(plan.schedule, p.step, plan.steps, plan.warmup)
        tokens, totals = int(self.lengths[rows].sum()), self.objective.totals(self.examples, rows)
        self.measured = None
        outcome = self.stepper.step(mine, batches, totals, rate, p.step + 1)
        p.step += 1
        p.tokens += tokens
        p.scored_tokens += totals.scored
        facts = {
            "step": p.step,
            "epoch": round(epoch, 4),
            "learning_rate": rate,
            "tokens": tokens,
            "scored_tokens": totals.scored,
            **self.stepper.facts,
        }
        self.journal.add(facts, rows, outcome)
        due = p.step % LOG_EVERY == 0
        second = len(p.step_seconds) == 1  # what is under way then would count in later steps' seconds
        if due or second or self.device.type == "cpu":
            self._read(began, weigh=due)
        else:
            clock(p, began, tokens)

    def _read(self, began: float | None = None, weigh: bool = True) -> None:
        """Wait for the steps under way and tell of them; GuardStop where the run must not go on."""
        why = self.journal.read(self.progress, began, self.plan.max_bad_steps)
        if weigh or why:
            why = self.journal.weigh(self.progress) or why
        if why:
            raise GuardStop(f"{why}; {self._keep_good()}.")

    def _keep_good(self) -> str:
        """Leave the last good state as the newest checkpoint, and say which it is and what to do."""
        p = self.progress
        if not p.diverging:  # the steps were skipped: what they found is still there
            p.bad_steps, p.bad_since = 0, None
            self.save()
            return (
                f"what was learnt before is kept as checkpoints/step-{p.step}; look at these rows, or begin a new run with a lower "
                "optimizer.learning_rate"
            )
        return self.world.first(self._drop_bad)

    def _drop_bad(self) -> str:
        """Delete the checkpoints of states whose losses were beyond bounds; the rest as in _keep_good."""
        p, folder = self.progress, self.run.folder / "checkpoints"
        self.writer.wait()
        for path in checkpoint.listed(folder):
            # the first bad loss is that of the state one step before; the start is nobody's fault
            if p.bad_since is not None and int(path.name.removeprefix("step-")) >= max(1, p.bad_since - 1):
                checkpoint.remove(path)
        good, _ = checkpoint.newest_whole(folder)
        kept = f"the last good state is kept as checkpoints/{good.name}" if good else "no good state was saved"
        return f"{kept}; begin a new run with a lower optimizer.learning_rate"

    def _save_if_good(self) -> None:
        """Write a checkpoint, but none of a state whose losses are beyond all bounds, for it would take a good one's place."""
        self._read()
        if self.progress.diverging:
            self.run.emit(
                "notice", message=f"step {self.progress.step}: no checkpoint is written while the loss is beyond bounds"
            )
        else:
            self.save()

    def _evaluate(self) -> None:
        self._read()
        p = self.progress
        if self.measured is None:
            with evaluated(self.optimizer, self.masters):
                self.measured = self.evaluate()
        p.metrics = self.measured
        if not p.metrics:
            return
        self.run.emit("evaluate", step=p.step, metrics=p.metrics)
        value = p.metrics["validation_loss"]["value"]
        if math.isfinite(value) and (p.best is None or value < p.best):
            p.best, p.best_step, p.since_best = value, p.step, 0
            if self.plan.early_stopping:
                self.save()  # the result may be this one
        else:
            p.since_best += 1

    def save(self) -> None:
        """Begin to write a checkpoint of everything a bit-exact continuation needs; those no longer kept are dropped after it."""
        self._read()  # which may stop the run
        self._check_equal()
        p = self.progress
        tensors = {
            "trained": self.masters.masters,
            "optimizer": state_tensors(self.optimizer, self.masters.masters),
            "random": {
                k: v for part in self.world.gather(checkpoint.rng_state(self.world.rank)) for k, v in part.items()
            },
            "guard": self.guard.state(),
        }
        companions = [c.state() for c in self.stepper.companions]
        tensors |= {f"companion-{i}": own for i, (own, _) in enumerate(companions) if own}
        facts = {k: v for k, v in vars(p).items() if k not in ("step_tokens", "step_seconds")}
        state = {"progress": facts, "data": self.fingerprint, "processes": self.world.size}
        state["companions"] = [own for _, own in companions]
        if self.world.rank == 0:
            self.writer.submit(p.step, tensors, state, p.best_step)
        self._tell_written()

    def _check_equal(self) -> None:
        """GuardStop where the processes' weights have come apart, which a fault of a machine does."""
        if self.world.size > 1 and len(set(self.world.gather(checksum(self.masters.masters.values())))) > 1:
            raise GuardStop(
                f"step {self.progress.step}: the processes no longer hold the same weights, which a fault of one of the machines "
                "makes; the checkpoints before are kept, continue with --resume on others."
            )

    def _tell_written(self) -> None:
        """Tell of the checkpoints that reached the disk since the last time; InputError where one cannot."""
        for path in self.writer.written():
            step = int(path.name.removeprefix("step-"))
            self.run.emit("checkpoint", step=step, path=str(path.relative_to(self.run.folder)))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever ends the loop, the checkpoint under way is on disk before anything else is done."""
        try:
            yield
        except BaseException as ended:
            try:
                self._drain()
            except (InputError, OSError) as e:
                if isinstance(ended, Interrupted):  # which says that the run can be resumed from there
                    raise
                with suppress(OSError):  # what ended the loop is what must be told first
                    self.run.emit("notice", message=str(e))
            if isinstance(ended, (Interrupted, GuardStop)):
                with suppress(ProcessLost):  # a launcher stops all when one ends: none does before this is on disk
                    self.world.gather(None)
            raise
        self._drain()

    def _drain(self) -> None:
        self.writer.wait()
        self._tell_written()

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint found whole."""
        tensors, state = load(self.world, path)
        self.masters.load(tensors["trained"])
        load_state_tensors(self.optimizer, self.masters.masters, tensors["optimizer"])
        self.guard.load(tensors["guard"])
        self._load_companions(tensors, state)
        self.progress = Progress(**state["progress"])
        before, now = state.get("processes", 1), self.world.size
        if before == now:
            checkpoint.set_rng_state(tensors["random"], self.world.rank)
        else:
            checkpoint.seed_rng(self.world.seed(self.plan.seed, self.progress.step))
            said = f"the run was begun with {before} process{'es' if before > 1 else ''} and goes on with {now}"
            self.run.emit("notice", message=f"{said}: the same rows in every step, other random numbers for dropout")
        self.stepper.capacity = self.progress.microbatch_tokens or self.stepper.capacity

    def _load_companions(self, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        for i, companion in enumerate(self.stepper.companions):
            companion.load(tensors.get(f"companion-{i}", {}), state["companions"][i])

    def _restore_best(self) -> None:
        p = self.progress
        path = self.run.folder / "checkpoints" / f"step-{p.best_step}"
        wrong = self.world.first(lambda: checkpoint.damage(path))
        if wrong is None:
            tensors, state = load(self.world, path)
            self.masters.load(tensors["trained"])
            load_state_tensors(self.optimizer, self.masters.masters, tensors["optimizer"])
            self._load_companions(tensors, state)
            self.measured = None
            p.metrics = state["progress"]["metrics"]
            said = f"the result is step {p.best_step}, the best by validation loss ({p.best:.4f})"
        else:
            said = f"step {p.best_step}, the best by validation loss, is damaged ({wrong}); the result is step {p.step}"
        self.run.emit("notice", message=said)

    def _signals(self) -> "_Signals":
        return _Signals(self)


class _Signals:
    """SIGINT and SIGTERM end the run after the step under way, with a checkpoint; a second SIGINT ends it at once.

    Not one of several processes: their launcher hands on the Ctrl-C that they all got from the terminal already.
    """

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
        if self.loop._signal is not None and number == signal.SIGINT and self.loop.world.size == 1:
            raise KeyboardInterrupt
        self.loop._signal = number
