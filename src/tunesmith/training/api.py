"""The verb `train`: check everything, infer what is open, train, measure before and after, write the result and the report."""

import hashlib
import json
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import config as configuration
from tunesmith import registry, run
from tunesmith.arguments import named
from tunesmith.config import RunConfig
from tunesmith.data.records import Examples, Record
from tunesmith.errors import GuardStop, InputError
from tunesmith.model.loading import (
    STARTER,
    ModelSource,
    adapter_config,
    check_weights,
    load_config,
    load_tokenizer,
    resolve,
)
from tunesmith.training import checkpoint, infer, measure
from tunesmith.training import resolve as resolving
from tunesmith.training.batch import Indices, examples_of
from tunesmith.training.infer import Amount, Inferred, Shape
from tunesmith.training.loop import Interrupted, Loop, Plan, Progress, count_steps, peak_memory

BEGUN = ("lock", "events.jsonl", ".run.yaml.part")  # what a run leaves that ended before it began


def train(
    config: str | dict[str, Any] | None = None,
    *,
    model: str | None = None,
    data: str | Sequence[str | dict[str, Any]] | None = None,
    objective: str | None = None,
    adapter: str | None = None,
    output: str | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    listeners: Sequence[run.Listener] = (),
) -> dict[str, Any]:
    """Train as a run file (path or its content) says, the other arguments laid over it; `settings` are "section.key=value".

    Returns {"run", "steps", "tokens", "scored_tokens", "seconds", "tokens_per_second" (real tokens per second of stepping, the
    first two steps left out), "train_loss", "metrics", "peak_memory_bytes", "result"}. `listeners` get every event as a dict.
    Raises InputError before weights are loaded where the input is wrong; GuardStop where the loss stops being a number.
    """
    content, where = _content(config, model, data, objective, adapter, output, settings)
    given = configuration.parse(content, where)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "this run was launched as several processes, which tunesmith does not train with yet; start one process."
        )
    if resume:
        folder = _folder_to_resume(config, output, given)
        if (folder / "run.yaml").is_file():
            stored = configuration.parse(configuration.load_file(str(folder)), str(folder / "run.yaml"))
            resolving.refuse_changes(given, stored, str(folder))
            given = stored
        if run.state(folder) == "done":
            return _finished(folder, listeners)
    else:
        folder = _new_folder(given)
    _check_places(given, folder)
    return _Training(given, folder, listeners).go(resume)


def _check_places(config: RunConfig, folder: Path) -> None:
    """InputError where data, model or output cannot be what they are named; imports nothing heavy."""
    from tunesmith.data import files, sources

    for source in sources.parse(config.data):
        files.expand(source.path, source.split)
    start = (config.adapter or {}).get("from")
    check_weights(
        resolve(
            start if start and "model" not in config.model_fields_set and Path(start).is_dir() else config.model.path
        )
    )
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"the output folder {folder} cannot be made: {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"the output folder {folder} cannot be written: no permission in {existing}.")


def _content(
    config: str | dict[str, Any] | None,
    model: str | None,
    data: str | Sequence[str | dict[str, Any]] | None,
    objective: str | None,
    adapter: str | None,
    output: str | None,
    settings: Sequence[str],
) -> tuple[dict[str, Any], str]:
    content = configuration.load_file(config) if isinstance(config, str) else dict(config or {})
    for key, value in (("model", model), ("objective", objective), ("adapter", adapter), ("output", output)):
        if value is not None:
            content[key] = value
    if data is not None:
        content["data"] = [data] if isinstance(data, str) else list(data)
    for setting in settings:
        configuration.assign(content, setting)
    return content, config if isinstance(config, str) else "the run"


def _new_folder(config: RunConfig) -> Path:
    if not config.data:
        raise InputError("there is no data to train on: give --data FILE (or a data section in the run file).")
    if config.output is not None:
        folder = Path(config.output)
        if folder.is_file():
            raise InputError(f"the output {folder} is a file; a run needs a folder of its own.")
        if folder.is_dir() and any(p.name not in BEGUN for p in folder.iterdir()):
            if (folder / "run.yaml").is_file():
                raise InputError(
                    f"the output folder {folder} holds a run; continue it with --resume or choose another --output."
                )
            raise InputError(f"the output folder {folder} is not empty and holds no run; choose another --output.")
        return folder
    stem = Path(str(config.data[0].get("path", "data"))).stem
    name = re.sub(r"[^\w.-]+", "-", f"{stem}-{config.objective['name']}")
    folder, n = Path("runs") / name, 1
    while folder.exists():
        n += 1
        folder = Path("runs") / f"{name}-{n}"
    return folder


def _folder_to_resume(config: str | dict[str, Any] | None, output: str | None, given: RunConfig) -> Path:
    if isinstance(config, str) and output is None:
        path = Path(config)
        folder = path if path.is_dir() else path.parent
        if (folder / "state.json").is_file() and (folder / "run.yaml").samefile(
            folder / path.name if path.is_file() else folder / "run.yaml"
        ):
            return folder  # a run's own file, wherever the run was moved
    if given.output is None:
        raise InputError("--resume needs to know the run: give its --output, or RUN/run.yaml.")
    folder = Path(given.output)
    if folder.is_dir() and not (folder / "run.yaml").is_file() and any(p.name not in BEGUN for p in folder.iterdir()):
        raise InputError(f"the output folder {folder} holds no run to resume, and it is not empty.")
    return folder


def _finished(folder: Path, listeners: Sequence[run.Listener]) -> dict[str, Any]:
    for listener in listeners:
        listener({"event": "notice", "message": f"{folder} is finished: nothing is left to resume"})
    result: dict[str, Any] = json.loads((folder / "results.json").read_text())["train"]
    return result


class _Training:
    """The stages of one run, in order; each fills in what the next needs."""

    def __init__(self, config: RunConfig, folder: Path, listeners: Sequence[run.Listener]) -> None:
        self.config, self.folder, self.listeners = config, folder, listeners
        self.inferred: list[Inferred] = []
        self.progress = Progress()
        self.notices: list[str] = []
        self.held_out: list[Record] = []

    def go(self, resume: bool) -> dict[str, Any]:
        self._check_model()
        self._read_data()
        with run.open_run(self.folder, tuple(self.listeners)) as self.run:
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
                if isinstance(e, Interrupted):
                    self._end("interrupted", str(e))
                else:
                    path = self.folder / "traceback.txt"
                    path.write_text(traceback.format_exc())
                    e.traceback_file = str(path)  # type: ignore[attr-defined]
                    self._end("failed", f"{type(e).__name__}: {e}")
                raise

    # -- before any weight is loaded

    def _check_model(self) -> None:
        self.source = self._source()
        check_weights(self.source)
        self.tokenizer, notices = load_tokenizer(self.source)
        self.notices += notices
        self.shape = _shape(self.source)
        self.machine = infer.machine(self.config.train.device)
        self._infer(infer.infer_model(self.config, self.shape, self.machine))
        length, context = self.config.train.max_length, self.shape.context
        if length is not None and context is not None and length > context:
            raise InputError(f"train.max_length {length} is beyond the model's context of {context} tokens; lower it.")
        self._check_adapter()

    def _source(self) -> ModelSource:
        """Return base and adapter: of adapter.from, or of a model that is an adapter itself, which is trained on as it is."""
        adapter, model = self.config.adapter, self.config.model.path
        if adapter is not None and "from" in adapter:
            started = resolve(adapter["from"]) if Path(adapter["from"]).is_dir() else resolve(model, adapter["from"])
            if started.adapter is None:
                raise InputError(
                    f"adapter.from: {adapter['from']} holds a whole model, no adapter; give it as the model."
                )
            if "model" not in self.config.model_fields_set:
                self._infer([Inferred("model.path", _name(started.base), "what the adapter was trained on")])
            elif resolve(model).adapter not in (None, started.adapter):
                raise InputError(
                    f"the model {model} is an adapter, and adapter.from names another; keep one of the two."
                )
            return ModelSource(resolve(self.config.model.path).base, started.adapter)
        source = resolve(model)
        if source.adapter is not None:
            if adapter is not None:
                raise InputError(
                    f"the model {model} already is an adapter on {_name(source.base)}, and training continues it as it is; "
                    "leave the adapter out, or train from that base."
                )
            self._infer([Inferred("adapter", {"from": model}, "the model is an adapter: it is trained on")])
        return source

    def _check_adapter(self) -> None:
        """Attach the adapter to a model without memory, so that targets that match nothing are found now."""
        adapter = self.config.adapter or {}
        if self.source.adapter is not None:
            kind = adapter_config(self.source.adapter).get("peft_type")
            if kind != "LORA":
                raise InputError(f"{self.source.adapter} is a {kind} adapter; tunesmith continues LORA ones only.")
        elif adapter["name"] != "full":
            _attach(_meta_model(self.source), adapter)

    def _infer(self, found: list[Inferred]) -> None:
        self.inferred += found
        self.config = resolving.apply(self.config, found)

    def _read_data(self) -> None:
        from tunesmith.data import sources
        from tunesmith.data.render import render
        from tunesmith.evaluation.evaluator import check_rules

        objective = registry.load("training.objectives", self.config.objective["name"])
        loaded = sources.load(self.config.data)
        sources.check_objective(loaded, self.config.objective["name"], objective.reads)
        self.notices += loaded.notices
        train_rows = self._split(loaded.records)
        unreadable = next((r for r in self.held_out if not isinstance(r, objective.reads)), None)
        if unreadable is not None:
            raise InputError(
                f"{unreadable.origin}: validation holds {type(unreadable).__name__.lower()} rows, which the objective "
                f"{self.config.objective['name']} does not read."
            )
        if self.config.evaluate and not self.held_out:
            raise InputError(
                "evaluate measures on the validation rows, but no row could be held out; give validation.path."
            )
        check_rules(self.held_out, self.config.evaluate)
        self.train_records = [loaded.records[i] for i in train_rows]
        limit, seed = self.config.train.max_length, self.config.train.seed
        self.examples, notices = render(self.train_records, self.tokenizer, limit, objective.scores)
        if int(self.examples.ids.max()) >= self.shape.vocabulary:
            raise InputError(
                f"the tokenizer makes token {int(self.examples.ids.max())}, but the model's vocabulary has "
                f"{self.shape.vocabulary}: they do not belong together."
            )
        self.notices += notices
        self.validation: Examples | None = None
        if self.held_out:
            self.validation, _ = render(self.held_out, self.tokenizer, limit, objective.scores)
        place = np.full(
            len(loaded.records), -1, dtype=np.int64
        )  # where a loaded record stands among the training records
        place[train_rows] = np.arange(len(train_rows))
        self.rows = lambda epoch: examples_of(self.examples, place[loaded.epoch(train_rows, seed, epoch)])

    def _split(self, records: list[Record]) -> Indices:
        """Set self.held_out and return the numbers of the records to train on."""
        from tunesmith.data import splits

        validation, seed = self.config.validation, self.config.train.seed
        if validation is not False and "path" in validation:
            held_out, sentence = splits.from_files(records, validation)
            rows, self.held_out = np.arange(len(records)), held_out.records
        else:
            rows, chosen, sentence = splits.split(
                records, validation or None if validation is not False else False, seed
            )
            self.held_out = [records[i] for i in chosen]
        self.notices.append(sentence)
        return rows

    # -- with the folder open

    def _go(self, resume: bool) -> dict[str, Any]:
        found: Path | None = None
        notices: list[str] = []
        if resume:
            found, notices = checkpoint.newest_whole(self.folder / "checkpoints")
        self._schedule()
        self._announce(notices)
        policy = self._policy()
        loop = self._loop(policy)
        if found is not None:
            loop.resume(found)
            self._same_data(found)
        self._start(policy, loop.plan.steps, loop.progress.step if found else None)
        self.progress = loop.progress
        if found is None or not (self.folder / "results.json").is_file():
            measure.before(self.folder / "results.json", *self._measure(policy))
        return self._finish(policy, loop.train())

    def _schedule(self) -> None:
        lengths = self.examples.lengths
        validation_tokens = int(self.validation.lengths.sum()) if self.validation is not None else 0
        first = self.rows(0)
        amount = Amount(len(first), int(lengths[first].sum()), int(lengths.max()), validation_tokens)
        if self.config.train.microbatch_tokens and self.config.train.microbatch_tokens < amount.longest:
            self.notices.append(
                f"train.microbatch_tokens is below the longest example ({amount.longest} tokens), which runs alone"
            )
        self._infer(infer.infer_schedule(self.config, self.shape, self.machine, amount))
        train = self.config.train
        if train.max_steps is not None:
            self.steps = train.max_steps
        else:
            assert train.epochs is not None
            self.steps = count_steps(
                lengths, self.rows, train.seed, train.tokens_per_step, train.batch_size, train.epochs
            )
        self._infer(infer.infer_intervals(self.config, self.steps, amount))

    def _announce(self, notices: list[str]) -> None:
        run.write_bytes(self.folder / "run.yaml", resolving.to_yaml(self.config, self.inferred).encode())
        run.write_json(self.folder / "environment.json", run.environment(_device_name(self.machine.device)))
        self.run.set_state("running", pid=os.getpid())
        for notice in [*self.notices, *notices]:
            self.run.emit("notice", message=notice)
        for item in self.inferred:
            self.run.emit("inferred", key=item.key, value=item.value, reason=item.reason)

    def _policy(self) -> Any:
        import torch

        from tunesmith.model.loading import load_model
        from tunesmith.model.lora import fuse
        from tunesmith.model.policy import make_policy

        torch.manual_seed(self.config.train.seed)
        assert self.config.train.dtype is not None
        model = load_model(self.source, dtype=self.config.train.dtype)
        adapter = self.config.adapter or {}
        if self.source.adapter:
            model.requires_grad_(False)
            model.set_adapter("default")  # which makes the adapter's own weights, and no others, trained
        else:
            model = _attach(model, adapter)
        fuse(model)
        policy, sentence = make_policy(model.to(self.machine.device))
        self.run.emit("notice", message=sentence)
        return policy

    def _loop(self, policy: Any) -> Any:
        from tunesmith.training.optimizers import OPTIMIZERS

        train = self.config.train
        warmup = train.warmup or 0.0
        given = {k: v for k, v in self.config.optimizer.items() if k not in ("name",)}
        plan = Plan(
            steps=self.steps,
            learning_rate=float(given["learning_rate"]),
            warmup=round(warmup * self.steps) if warmup < 1 else int(warmup),
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
                )
            },
        )
        objective = registry.load("training.objectives", self.config.objective["name"])
        return Loop(
            self.run,
            policy,
            objective.loss,
            self.examples,
            self.rows,
            plan,
            lambda masters: OPTIMIZERS[self.config.optimizer["name"]](masters, **given),
            lambda: self._validation_metrics(policy),
            _fingerprint(self.examples, self.rows(0)),
        )

    def _same_data(self, path: Path) -> None:
        stored = json.loads((path / "state.json").read_text())["data"]
        if stored != _fingerprint(self.examples, self.rows(0)):
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
            rows=len(self.train_records),
            validation_rows=len(self.held_out),
            parameters=sum(p.numel() for p in parameters),
            trained_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            resumed_from=resumed_from,
        )

    # -- measuring

    def _validation_metrics(self, policy: Any) -> dict[str, Any]:
        return measure.validation_metrics(policy, self.validation, self.config.train.microbatch_tokens or 4096)

    def _measure(self, policy: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        limit = self.config.train.max_length
        assert limit is not None
        metrics, samples = measure.answers(policy, self.tokenizer, self.held_out, self.config.evaluate, limit)
        return {**self._validation_metrics(policy), **metrics}, samples

    def _finish(self, policy: Any, progress: Any) -> dict[str, Any]:
        import torch

        from tunesmith.evaluation.report import write_report

        result = self._save_result(policy)
        metrics, samples = self._measure(policy)
        report: dict[str, Any] = {
            "run": str(self.folder),
            "steps": progress.step,
            "tokens": progress.tokens,
            "scored_tokens": progress.scored_tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": _throughput(progress.step_tokens, progress.step_seconds),
            "train_loss": progress.train_loss,
            "metrics": metrics,
            "peak_memory_bytes": peak_memory(torch.device(self.machine.device)),
            "result": str(result),
        }
        measure.after(self.folder / "results.json", metrics, samples, report)
        self.run.set_state("done")
        self.run.emit("end", state="done", step=progress.step, seconds=report["seconds"], tokens=progress.tokens)
        write_report(self.folder)
        return report

    def _save_result(self, policy: Any) -> Path:
        import shutil

        result, beside = self.folder / "result", self.folder / ".result.part"
        shutil.rmtree(beside, ignore_errors=True)
        for adapter in getattr(policy.model, "peft_config", {}).values():
            if Path(self.source.base).is_dir():  # plain PEFT finds the base from any folder
                adapter.base_model_name_or_path = str(Path(self.source.base).resolve())
        policy.model.save_pretrained(beside)
        self.tokenizer.save_pretrained(beside)
        shutil.rmtree(result, ignore_errors=True)
        beside.rename(result)
        return result

    def _end(self, state: str, message: str) -> None:
        """Close an unfinished run: its state, its last event, and a report of what there is."""
        from tunesmith.evaluation.report import write_report

        done = {"step": self.progress.step, "tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 3)}
        self.run.set_state(state, message=message)
        self.run.emit("end", state=state, message=message, **done)
        write_report(self.folder)


def _attach(model: Any, adapter: dict[str, Any]) -> Any:
    checked = named(adapter, "model.adapters", "attach", "adapter", "the run")
    return registry.load("model.adapters", adapter["name"]).attach(model, **checked)


def _name(base: str) -> str:
    return "starter" if base == str(STARTER) else base


def _meta_model(source: ModelSource) -> Any:
    """Return the model's structure without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as e:  # a config is the user's: whatever the model's code says of it is about the config
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InputError(
            f'the model "{_name(source.base)}" is none that writes text, or its config is wrong: {first[:200]}.'
        ) from e


def _shape(source: ModelSource) -> Shape:
    config = load_config(source).get_text_config()
    parameters = sum(p.numel() for p in _meta_model(source).parameters())
    width = config.hidden_size
    feedforward = getattr(config, "intermediate_size", None) or 4 * width
    context = getattr(config, "max_position_embeddings", None)
    return Shape(parameters, width, feedforward, config.num_hidden_layers, context, config.vocab_size)


def _throughput(tokens: list[int], seconds: list[float]) -> float | None:
    """Real tokens per second of stepping, the first two steps left out (None where there were no more)."""
    return round(sum(tokens[2:]) / sum(seconds[2:]), 1) if len(tokens) > 2 else None


def _fingerprint(examples: Examples, rows: Any) -> str:
    digest = hashlib.sha256()
    for array in (examples.ids, examples.scored, examples.offsets, np.asarray(rows)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    import torch

    return str(torch.cuda.get_device_name())
