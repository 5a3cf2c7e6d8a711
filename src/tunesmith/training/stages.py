"""The stages of a run with its folder open: policy, loop, measurements before and after, result, report."""

import contextlib
import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import registry, run
from tunesmith.errors import GuardStop, InputError, Interrupted, ProcessLost
from tunesmith.model import quantize, stacking
from tunesmith.model.loading import ModelSource
from tunesmith.tracking._feed import following
from tunesmith.training import (
    checkpoint,
    disk,
    make_objective,
    measure,
    optimizers,
    parallel,
    reference_run,
    reward_run,
)
from tunesmith.training import resolve as resolving
from tunesmith.training.companions import Companion
from tunesmith.training.dataset import CARD
from tunesmith.training.journal import Progress, peak_memory
from tunesmith.training.loop import Loop
from tunesmith.training.outcome import device_name, fingerprint, lacking, throughput
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.plan import Plan
from tunesmith.training.prepare import Prepared, attach
from tunesmith.training.result import save_result

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.model.adapters._attached import Attached
    from tunesmith.training.masters import Optimizers


class Training:
    """The stages of one run, in order; each fills in what the next needs."""

    def __init__(
        self, prepared: Prepared, folder: Path, listeners: Sequence[run.Listener], world: World = ALONE
    ) -> None:
        self.prepared, self.config, self.world = prepared, prepared.config, world
        self.folder, self.listeners = folder, listeners
        self.progress = Progress()
        self.reward: dict[str, Any] | None = None  # what is told of a reward model

    def go(self, resume: bool) -> dict[str, Any]:
        """Train to the end (from the newest whole checkpoint if `resume`) and return what the verb returns."""
        with contextlib.ExitStack() as stack:
            self.run = self.world.together(lambda: self._open(stack, resume))
            try:
                return self._go(resume)
            except GuardStop as e:
                self._end("stopped", str(e))
                raise
            except InputError as e:
                self._end("failed", str(e))
                raise
            except KeyboardInterrupt as e:
                self._end("interrupted", str(e) or "interrupted")
                raise
            except Exception as e:
                if isinstance(e, (Interrupted, ProcessLost)):
                    self._end("interrupted" if isinstance(e, Interrupted) else "failed", str(e))
                elif said := lacking(self.folder, e):
                    self._end("failed", said)
                    raise InputError(said) from e
                else:
                    path = self.folder / f"traceback{f'-{self.world.rank}' if self.world.rank else ''}.txt"
                    path.parent.mkdir(parents=True, exist_ok=True)  # another machine may not have it
                    path.write_text(traceback.format_exc())
                    e.traceback_file = str(path)  # type: ignore[attr-defined]
                    self._end("failed", f"{type(e).__name__}: {e}")
                raise

    def _open(self, stack: contextlib.ExitStack, resume: bool) -> run.Run:
        """Open the run's folder, in the first process alone, until `stack` is closed."""
        if self.world.rank > 0:
            return run.Elsewhere(self.folder)
        self._check_disk()
        if self.config.train.optimizer_in_backward and self.world.size > 1:
            raise InputError(
                f"train.optimizer_in_backward steps each weight before the gradients of {self.world.size} processes are added up; "
                "start one process, or take it away."
            )
        opened = stack.enter_context(run.open_run(self.folder, tuple(self.listeners)))
        if not resume:
            run.refuse_used(self.folder)  # again: another run may have been in it while this one was prepared
        stack.enter_context(following(opened, self.config.track, resolving.as_dict(self.config)))
        return opened

    def _go(self, resume: bool) -> dict[str, Any]:
        found, notices = self.world.first(
            lambda: checkpoint.newest_whole(self.folder / "checkpoints") if resume else (None, [])
        )
        if self.world.rank == 0:
            self._announce(notices)
        if found is None:  # it starts, perhaps from other weights than an earlier start did
            self.world.first(lambda: (self.folder / reference_run.FILE).unlink(missing_ok=True))
        self._refer()
        loop = self.world.together(self._loop)
        self._agree(loop)
        self._refer(loop.policy)
        self.world.together(loop.begin_companions)
        if found is not None:
            self._same_data(found, loop.fingerprint)
            loop.resume(found)
        self._start(loop.policy, loop.plan.steps, loop.progress.step if found else None)
        self.progress = loop.progress
        if found is None or not self.world.first((self.folder / "results.json").is_file):
            metrics, samples = self._measure(loop)
            if self.world.rank == 0:
                measure.before(self.folder / "results.json", metrics, samples)
        loop.train()
        return self._finish(loop)

    def _refer(self, policy: Any = None) -> None:
        """Compute what the run's reference says of its answers: another model before the policy is loaded, or that as it begins."""
        say = lambda message: self.run.emit("notice", message=message)  # noqa: E731
        reference_run.for_run(self.prepared, self.folder, self.world, say, policy)

    def _agree(self, loop: Loop) -> None:
        """Begin every process with the same data and weights, and with random numbers of its own."""
        world = self.world
        if world.size == 1:
            return
        import torch

        world.same(loop.fingerprint, "other data")
        world.broadcast_(loop.masters.masters.values())
        loop.masters.refresh()
        held = (t for p in loop.policy.parameters() for t in quantize.stored(p))
        world.same(parallel.checksum(held), "other weights of the model")
        checkpoint.seed_rng(world.seed(self.config.train.seed, 0))
        threads = torch.get_num_threads()
        by = "NCCL" if loop.device.type == "cuda" else f"gloo, {threads} thread{'s' if threads > 1 else ''} each"
        said = f"{world.size} processes train together, each on its share of every step's rows ({by})"
        self.run.emit("notice", message=said)

    def _check_disk(self) -> None:
        """InputError where the run's checkpoints, the one being written and the best included, do not fit."""
        train, trained = self.config.train, self.prepared.shape.trained
        assert train.checkpoint_every is not None
        saves = -(-self.prepared.steps // train.checkpoint_every) + 1
        itemsize = 4 if train.dtype == "float32" else 2
        disk.check_run(self.folder, trained, itemsize, min(max(train.keep_last, 2) + 2, saves))

    def _announce(self, notices: list[str]) -> None:
        run.write_bytes(self.folder / "run.yaml", resolving.to_yaml(self.config, self.prepared.inferred).encode())
        run.write_json(self.folder / "environment.json", run.environment(device_name(self.prepared.machine.device)))
        self._keep_card()
        self.run.set_state("running", pid=os.getpid())
        for notice in [*self.prepared.notices, *notices]:
            self.run.emit("notice", message=notice)
        for item in self.prepared.inferred:
            self.run.emit("inferred", key=item.key, value=item.value, reason=item.reason)

    def _keep_card(self) -> None:
        """Copy the card of the prepared data beside run.yaml: the set itself is in the cache, which drops what is not used."""
        folder = self.prepared.entries.card
        for file in [] if folder is None else [f for f in (folder / "card.json", folder / "card.html") if f.is_file()]:
            run.write_bytes(self.folder / f"{CARD}{file.suffix}", file.read_bytes())

    def _policy(self) -> "tuple[Any, Attached]":
        """Return the policy and what its adapter left."""
        from tunesmith.model.activations import checkpoint_activations
        from tunesmith.model.adapters._attached import Attached
        from tunesmith.model.loading import load_model
        from tunesmith.model.lora import fuse
        from tunesmith.model.new_tokens import begin, ratios, train_rows
        from tunesmith.model.offload import offload_activations
        from tunesmith.model.policy import make_policy
        from tunesmith.model.regional import compile_layers
        from tunesmith.model.reward import make_reward_policy

        checkpoint.seed_rng(self.config.train.seed)
        assert self.config.train.dtype is not None
        adapter, below = self.config.adapter or {}, self.prepared.below
        device = self.world.device(self.prepared.machine.device)
        if below is not None and adapter.get("how") == "merge":
            model = self._merged_first(below)
        else:
            model = load_model(self.prepared.source, dtype=self.config.train.dtype, trainable=True, device=device)
        begin(model, self.prepared.new_tokens)
        if self.prepared.source.adapter:
            attached = Attached(model)
        else:
            attached = attach(model, adapter)
            if below is not None and adapter.get("how") != "merge":
                attached = stacking.stacked(attached, below)
        model = attached.model
        if self.prepared.new_tokens.ids:
            train_rows(model, self.prepared.new_tokens.ids)
            attached = replace(attached, ratios={**attached.ratios, **ratios(model, self.prepared.method)})
        if self.config.train.fused:
            fuse(model)
        make = make_reward_policy if self.prepared.rewards else make_policy
        policy, sentence = make(model.to(device))
        checkpoint_activations(model, self.config.train.activation_checkpointing or "none")
        if self.config.train.activation_offload:
            offload_activations(model)
        if self.config.train.compile:
            compile_layers(policy)
        measured = [said for said in attached.notices if said not in self.prepared.notices]  # with weights, LoftQ's
        for said in [*measured, sentence]:
            self.run.emit("notice", message=said)
        return policy, attached

    def _merged_first(self, below: str) -> Any:
        """Return the base with an old adapter in it, kept beside the result where that is an adapter of it."""
        from tunesmith.model import into_base
        from tunesmith.model.reward import from_causal

        keep = self.folder / "base" if self.prepared.wraps and self.world.rank == 0 else None
        source = ModelSource(self.prepared.source.base, below)
        model, notices = into_base.merged_first(source, str(self.config.train.dtype), self.prepared.tokenizer, keep)
        for notice in notices:
            self.run.emit("notice", message=notice)
        return from_causal(model, self.prepared.source.attributes) if self.prepared.rewards else model

    def _loop(self) -> Loop:
        (policy, attached), train = self._policy(), self.config.train
        warmup = train.warmup or 0.0
        given = {k: v for k, v in self.config.optimizer.items() if k != "name"}
        plan = Plan(
            steps=self.prepared.steps,
            learning_rate=float(given["learning_rate"]),
            warmup=round(warmup * self.prepared.steps) if warmup < 1 else int(warmup),
            difficulty=self.prepared.difficulty,
            **{
                key: getattr(train, key)
                for key in (
                    "tokens_per_step",
                    "batch_size",
                    "microbatch_tokens",
                    "schedule",
                    "clip_norm",
                    "seed",
                    "evaluate_every",
                    "checkpoint_every",
                    "keep_last",
                    "early_stopping",
                    "max_bad_steps",
                )
            },
        )
        objective = make_objective.make(self.config.objective)
        return Loop(
            self.run,
            policy,
            objective,
            self.prepared.examples,
            self.prepared.rows,
            plan,
            lambda masters: self._optimizer(masters, attached),
            lambda: self._validation_metrics(objective, policy),
            fingerprint(self.prepared.examples, self.prepared.rows(0), self.prepared.difficulty),
            self.world,
            self._companions(attached),
        )

    def _optimizer(self, masters: "dict[str, Tensor]", attached: "Attached") -> "Optimizers":
        """Return the run's optimizer; where it steps inside the backward pass, one for each master."""
        given = {k: v for k, v in self.config.optimizer.items() if k != "name"}
        ratios = {f"model.{name}": ratio for name, ratio in attached.ratios.items()}
        make = partial(registry.load("training.optimizers", self.config.optimizer["name"]).make, ratios=ratios, **given)
        if not self.config.train.optimizer_in_backward:
            return make(masters)  # type: ignore[no-any-return]
        return optimizers.per_parameter(make, masters)

    def _companions(self, attached: "Attached") -> list[Companion]:
        found = [attached.companion] if attached.companion is not None else []
        if self.config.regularizer is not None:
            given = {k: v for k, v in self.config.regularizer.items() if k != "name"}
            found.append(registry.load("training.regularizers", self.config.regularizer["name"]).make(**given))
        return found

    def _same_data(self, path: Path, wanted: str) -> None:
        stored = self.world.first(lambda: json.loads((path / "state.json").read_text())["data"])
        if stored != wanted:
            raise InputError(
                f"the data of {self.folder} has changed since {path.name} was written; restore it or begin a new run."
            )

    def _start(self, policy: Any, steps: int, resumed_from: int | None) -> None:
        parameters = list(policy.parameters())
        adapter = self.config.adapter or {}
        self.run.emit(
            "start",
            run=str(self.folder),
            model=self.config.model.path,
            objective=self.config.objective["name"],
            adapter=adapter.get("name", f"from {adapter.get('from')}"),
            adapter_bytes=self._adapter_bytes(policy.model),
            **{f"adapter_{key}": adapter[key] for key in stacking.KEYS if key in adapter},
            steps=steps,
            epochs=self.config.train.epochs,
            rows=len(self.prepared.train_records),
            validation_rows=len(self.prepared.held_out),
            parameters=quantize.count(parameters),
            trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            resumed_from=resumed_from,
        )
        self.run.emit("mix", sources=self.prepared.mix)

    def _adapter_bytes(self, model: Any) -> int | None:
        from tunesmith.model.adapter_size import saved_bytes

        name = (self.config.adapter or {}).get("name")
        return saved_bytes(model, getattr(registry.load("model.adapters", name), "SAVED", 1) if name else 1)

    def _validation_metrics(self, objective: Any, policy: Any) -> dict[str, Any]:
        tokens = self.config.train.microbatch_tokens or 4096
        return measure.validation_metrics(objective, policy, self.prepared.validation, tokens, self.world)

    def _measure(self, loop: Loop) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        limit = self.config.train.max_length
        assert limit is not None
        if loop.measured is None:
            loop.measured = self._validation_metrics(loop.objective, loop.policy)
        own = loop.measured
        if self.prepared.rewards:
            found, self.reward = reward_run.measure(self.prepared, loop.policy, self.world)
            return {**own, **found}, []
        metrics, samples = measure.answers(
            loop.policy, self.prepared.tokenizer, self.prepared.held_out, self.config.evaluate, limit, self.world
        )
        return {**own, **metrics, **own}, samples  # its own perplexity is over all the tokens that were trained on

    def _finish(self, loop: Loop) -> dict[str, Any]:
        import torch

        progress = loop.progress
        result = self.world.first(lambda: save_result(self.prepared, loop.policy, self.run))
        metrics, samples = self._measure(loop)
        report: dict[str, Any] = {
            "run": str(self.folder),
            "steps": progress.step,
            "tokens": progress.tokens,
            "scored_tokens": progress.scored_tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": throughput(progress.step_tokens, progress.step_seconds),
            "train_loss": progress.train_loss,
            "metrics": metrics,
            "peak_memory_bytes": self.world.most(peak_memory(torch.device(self.prepared.machine.device)))[0],
            "result": str(result),
        }
        return self.world.first(lambda: self._close(report, samples))

    def _close(self, report: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Write what the run found, and return `report`."""
        from tunesmith.evaluation.report import write_report

        measure.after(self.folder / "results.json", report["metrics"], samples, report)
        if self.reward is not None:
            reward_run.tell(self.run, self.reward)
        self.run.emit("end", state="done", step=report["steps"], seconds=report["seconds"], tokens=report["tokens"])
        write_report(self.folder)
        self.run.set_state("done")
        return report

    def _end(self, state: str, message: str) -> None:
        """Close an unfinished run: its state, its last event, and a report of what there is."""
        from tunesmith.evaluation.report import write_report

        if self.world.rank > 0 or not (self.folder / "run.yaml").is_file():
            return  # nothing has begun, and the folder stays free for it
        done = {"step": self.progress.step, "tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 3)}
        with contextlib.suppress(OSError):  # a full disk takes neither: it is resumed as a killed run is
            self.run.set_state(state, message=message)
            self.run.emit("end", state=state, message=message, **done)
        with contextlib.suppress(Exception):  # what ended the run is what must be told
            write_report(self.folder)
