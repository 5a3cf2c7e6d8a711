"""What is checked, read and inferred before a run's folder is opened and any weight is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.config import RunConfig
from tunesmith.data.cache import rendered
from tunesmith.data.layout import fix_clock, reads_clock
from tunesmith.data.records import Examples, Record
from tunesmith.data.render import check_answers
from tunesmith.errors import InputError
from tunesmith.model.adapters.lora import reach
from tunesmith.model.loading import (
    STARTER,
    ModelSource,
    adapter_config,
    check_weights,
    count_weights,
    load_config,
    load_tokenizer,
    resolve,
)
from tunesmith.model.regional import check_compiler
from tunesmith.training import infer
from tunesmith.training import resolve as resolving
from tunesmith.training.batch import Indices, examples_of
from tunesmith.training.infer import Amount, Inferred, Shape
from tunesmith.training.plan import count_steps


class Prepared:
    """A run whose model, data and settings were found good; `config` has every value, `inferred` the reasons of those not asked for.

    source, tokenizer, shape and machine describe the model and where it runs; train_records and held_out the data; examples and
    validation (None: nothing is held out) the data rendered; rows(epoch) the examples of an epoch; steps the length of the run.
    Raises InputError at the first thing that is wrong.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.inferred: list[Inferred] = []
        self.notices: list[str] = []
        self.held_out: list[Record] = []
        self.train_records: list[Record] = []
        self.examples: Examples
        self.validation: Examples | None = None
        self.rows: Callable[[int], Indices]
        self.steps: int
        self.source = self._source()
        check_weights(self.source)
        self._read_rows()  # before transformers is imported: a broken row is said at once
        self._check_model()
        self._render()
        self._schedule()

    def _check_model(self) -> None:
        self.tokenizer, notices = load_tokenizer(self.source)
        self.notices += notices
        config = load_config(self.source)
        model = _meta_model(config, self.source)
        self.shape = _shape(config, model)
        self.machine = infer.machine(self.config.train.device)
        if self.config.train.compile:
            check_compiler(self.machine.device)
        self._infer(infer.infer_model(self.config, self.shape, self.machine))
        if reads_clock(self.tokenizer):
            self._infer(infer.infer_date(self.config))
            fix_clock(self.tokenizer, str(self.config.train.date))
        length, context = self.config.train.max_length, self.shape.context
        if length is not None and context is not None and length > context:
            raise InputError(f"train.max_length {length} is beyond the model's context of {context} tokens; lower it.")
        self.shape = replace(self.shape, trained=self._check_adapter(model))

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

    def _check_adapter(self, model: Any) -> int:
        """Attach the adapter to the model without memory: targets that match nothing are found now. Return how many weights train."""
        adapter = self.config.adapter or {}
        if self.source.adapter is not None:
            kind = adapter_config(self.source.adapter).get("peft_type")
            if kind != "LORA":
                raise InputError(f"{self.source.adapter} is a {kind} adapter; tunesmith continues LORA ones only.")
            return count_weights(Path(self.source.adapter) / "adapter_model.safetensors")
        adapted = attach(model, adapter)
        if adapter["name"] == "lora" and (sentence := reach(adapted)):
            self.notices.append(sentence)
        return sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    def _infer(self, found: list[Inferred]) -> None:
        self.inferred += found
        self.config = resolving.apply(self.config, found)

    def _read_rows(self) -> None:
        from tunesmith.data import sources
        from tunesmith.evaluation.evaluator import check_rules

        name = self.config.objective["name"]
        self.objective: Any = registry.load("training.objectives", name)
        self.loaded = sources.load(self.config.data)
        sources.check_objective(self.loaded, name, self.objective.reads)
        self.notices += self.loaded.notices
        self.train_rows = self._split(self.loaded.records)
        unreadable = next((r for r in self.held_out if not isinstance(r, self.objective.reads)), None)
        if unreadable is not None:
            raise InputError(
                f"{unreadable.origin}: validation holds {type(unreadable).__name__.lower()} rows, which the objective "
                f"{name} does not read."
            )
        if self.config.evaluate and not self.held_out:
            raise InputError(
                "evaluate measures on the validation rows, but no row could be held out; give validation.path."
            )
        check_rules(self.held_out, self.config.evaluate)
        self.train_records = [self.loaded.records[i] for i in self.train_rows]
        check_answers(self.train_records, self.objective.scores)

    def _render(self) -> None:
        limit, seed = self.config.train.max_length, self.config.train.seed
        self.examples, notices, said = rendered(self.train_records, self.tokenizer, limit, self.objective.scores)
        if int(self.examples.ids.max()) >= self.shape.vocabulary:
            raise InputError(
                f"the tokenizer makes token {int(self.examples.ids.max())}, but the model's vocabulary has "
                f"{self.shape.vocabulary}: they do not belong together."
            )
        if self.held_out:
            self.validation, _, more = rendered(self.held_out, self.tokenizer, limit, self.objective.scores)
            said += more
        self.notices += notices + list(dict.fromkeys(said))
        place = np.full(len(self.loaded.records), -1, dtype=np.int64)  # where a loaded record stands in train_records
        place[self.train_rows] = np.arange(len(self.train_rows))
        self.rows = lambda epoch: examples_of(self.examples, place[self.loaded.epoch(self.train_rows, seed, epoch)])

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


def attach(model: Any, adapter: dict[str, Any]) -> Any:
    checked = named(adapter, "model.adapters", "attach", "adapter", "the run")
    return registry.load("model.adapters", adapter["name"]).attach(model, **checked)


def _name(base: str) -> str:
    return "starter" if base == str(STARTER) else base


def _meta_model(config: Any, source: ModelSource) -> Any:
    """Return the model's structure without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as e:  # a config is the user's: whatever the model's code says of it is about the config
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InputError(
            f'the model "{_name(source.base)}" is none that writes text, or its config is wrong: {first[:200].rstrip(".")}.'
        ) from e


def _shape(config: Any, model: Any) -> Shape:
    text = config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    feedforward = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    context = getattr(text, "max_position_embeddings", None)
    if not (parameters and text.hidden_size > 0 and text.num_hidden_layers > 0):
        raise InputError(
            f"the model's config.json asks for {text.num_hidden_layers} layers of width {text.hidden_size}: it is not the config "
            "of a trained model; fetch or copy it again."
        )
    return Shape(parameters, text.hidden_size, feedforward, text.num_hidden_layers, context, text.vocab_size)
