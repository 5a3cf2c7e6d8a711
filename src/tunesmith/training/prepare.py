"""What is checked, read and inferred before a run's folder is opened and any weight is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.config import RunConfig
from tunesmith.data.records import Examples, Record
from tunesmith.errors import InputError
from tunesmith.model.loading import (
    STARTER,
    ModelSource,
    adapter_config,
    check_weights,
    load_config,
    load_tokenizer,
    resolve,
)
from tunesmith.training import infer
from tunesmith.training import resolve as resolving
from tunesmith.training.batch import Indices, examples_of
from tunesmith.training.infer import Amount, Inferred, Shape
from tunesmith.training.loop import count_steps


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
        self._check_model()
        self._read_data()
        self._schedule()

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
            attach(_meta_model(self.source), adapter)

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
