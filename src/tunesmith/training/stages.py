"""The stages of a run with its folder open: policy, loop, measurements before and after, result, report."""

import contextlib
import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import registry, run
from tunesmith.arguments import named
from tunesmith.data.records import Examples
from tunesmith.errors import GuardStop, InputError, Interrupted, ProcessLost
from tunesmith.tracking._feed import following
from tunesmith.training import checkpoint, disk, measure, memory, parallel
from tunesmith.training import resolve as resolving
from tunesmith.training.dataset import CARD
from tunesmith.training.journal import Progress, peak_memory
from tunesmith.training.loop import Loop
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.plan import Plan
from tunesmith.training.prepare import Prepared, attach


class Training:
    """The stages of one run, in order; each fills in what the next needs."""

    def __init__(
        self, prepared: Prepared, folder: Path, listeners: Sequence[run.Listener], world: World = ALONE
    ) -> None:
        self.prepared, self.config, self.world = prepared, prepared.config, world
        self.folder, self.listeners = folder, listeners
        self.progress = Progress()

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
                elif said := _lacking(self.folder, e):
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
        loop = self.world.together(self._loop)
        self._agree(loop)
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

    def _agree(self, loop: Loop) -> None:
        """Begin every process with the same data and weights, and with random numbers of its own."""
        world = self.world
        if world.size == 1:
            return
        import torch

        world.same(loop.fingerprint, "other data")
        world.broadcast_(loop.masters.masters.values())
        loop.masters.refresh()
        world.same(parallel.checksum(loop.policy.parameters()), "other weights of the model")
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
        run.write_json(self.folder / "environment.json", run.environment(_device_name(self.prepared.machine.device)))
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

    def _policy(self) -> Any:
        from tunesmith.model.activations import checkpoint_activations
        from tunesmith.model.loading import load_model
        from tunesmith.model.lora import fuse
        from tunesmith.model.policy import make_policy
        from tunesmith.model.regional import compile_layers

        checkpoint.seed_rng(self.config.train.seed)
        assert self.config.train.dtype is not None
        model = load_model(self.prepared.source, dtype=self.config.train.dtype)
        adapter = self.config.adapter or {}
        if self.prepared.source.adapter:
            model.requires_grad_(False)
            model.set_adapter("default")  # which makes the adapter's own weights, and no others, trained
        else:
            model = attach(model, adapter)
        fuse(model)
        policy, sentence = make_policy(model.to(self.world.device(self.prepared.machine.device)))
        checkpoint_activations(model, self.config.train.activation_checkpointing or "none")
        if self.config.train.compile:
            compile_layers(policy)
        self.run.emit("notice", message=sentence)
        return policy

    def _loop(self) -> Loop:
        from tunesmith.training.optimizers import OPTIMIZERS

        policy, train = self._policy(), self.config.train
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
        asked = self.config.objective
        objective = registry.load("training.objectives", asked["name"])
        arguments = named(asked, "training.objectives", "loss", "objective", "the run", skip=("logps", "weights"))
        return Loop(
            self.run,
            policy,
            partial(objective.loss, **arguments),
            self.prepared.examples,
            self.prepared.rows,
            plan,
            lambda masters: OPTIMIZERS[self.config.optimizer["name"]](masters, **given),
            lambda: self._validation_metrics(policy),
            _fingerprint(self.prepared.examples, self.prepared.rows(0), self.prepared.difficulty),
            self.world,
        )

    def _same_data(self, path: Path, fingerprint: str) -> None:
        stored = self.world.first(lambda: json.loads((path / "state.json").read_text())["data"])
        if stored != fingerprint:
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
            steps=steps,
            epochs=self.config.train.epochs,
            rows=len(self.prepared.train_records),
            validation_rows=len(self.prepared.held_out),
            parameters=sum(p.numel() for p in parameters),
            trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            resumed_from=resumed_from,
        )
        self.run.emit("mix", sources=self.prepared.mix)

    def _validation_metrics(self, policy: Any) -> dict[str, Any]:
        tokens = self.config.train.microbatch_tokens or 4096
        return measure.validation_metrics(policy, self.prepared.validation, tokens, self.world)

    def _measure(self, loop: Loop) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        limit = self.config.train.max_length
        assert limit is not None
        metrics, samples = measure.answers(
            loop.policy, self.prepared.tokenizer, self.prepared.held_out, self.config.evaluate, limit, self.world
        )
        if loop.measured is None:
            loop.measured = self._validation_metrics(loop.policy)
        own = loop.measured
        return {**own, **metrics, **own}, samples  # its own perplexity is over all the tokens that were trained on

    def _finish(self, loop: Loop) -> dict[str, Any]:
        import torch

        progress = loop.progress
        result = self.world.first(lambda: self._save_result(loop.policy))
        metrics, samples = self._measure(loop)
        report: dict[str, Any] = {
            "run": str(self.folder),
            "steps": progress.step,
            "tokens": progress.tokens,
            "scored_tokens": progress.scored_tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": _throughput(progress.step_tokens, progress.step_seconds),
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
        self.run.emit("end", state="done", step=report["steps"], seconds=report["seconds"], tokens=report["tokens"])
        write_report(self.folder)
        self.run.set_state("done")
        return report

    def _save_result(self, policy: Any) -> Path:
        result, beside = self.folder / "result", self.folder / ".result.part"
        shutil.rmtree(beside, ignore_errors=True)
        for adapter in getattr(policy.model, "peft_config", {}).values():
            if Path(self.prepared.source.base).is_dir():  # plain PEFT finds the base from any folder
                adapter.base_model_name_or_path = str(Path(self.prepared.source.base).resolve())
        policy.model.save_pretrained(beside)
        self.prepared.tokenizer.save_pretrained(beside)
        for path in (*beside.iterdir(), beside):
            disk.sync(path)
        shutil.rmtree(result, ignore_errors=True)
        disk.rename(beside, result)
        return result

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


def _lacking(folder: Path, error: Exception) -> str | None:
    """Return what to say of an error that is the machine's: no room on the disk, or no memory."""
    if disk.is_full(error):
        return disk.sentence(folder, error)
    return memory.SENTENCE if memory.ran_out(error) else None


def _throughput(tokens: list[int], seconds: list[float]) -> float | None:
    """Real tokens per second of stepping, the first two steps left out (None where there were no more)."""
    return round(sum(tokens[2:]) / sum(seconds[2:]), 1) if len(tokens) > 2 else None


def _fingerprint(examples: Examples, rows: Any, difficulty: Any = None) -> str:
    digest = hashlib.sha256()
    for array in (examples.ids, examples.scored, examples.offsets, rows, *([] if difficulty is None else [difficulty])):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name())
