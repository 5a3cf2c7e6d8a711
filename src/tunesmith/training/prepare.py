"""What is checked, read and inferred before a run's folder is opened and any weight is loaded."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.config import RunConfig
from tunesmith.data import mixing as mixes
from tunesmith.data import sources
from tunesmith.data.layout import fix_clock, reads_clock
from tunesmith.data.lazy import Chosen
from tunesmith.data.mixing import Indices, Numbers
from tunesmith.data.records import Examples, Record
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
from tunesmith.training import dataset, infer
from tunesmith.training import resolve as resolving
from tunesmith.training.dataset import Tasks
from tunesmith.training.infer import Amount, Inferred, Shape
from tunesmith.training.plan import count_steps, plan_steps


class Prepared:
    """A run whose model, data and settings were found good; `config` has every value, `inferred` the reasons of those not asked for.

    source, tokenizer, shape and machine describe the model and where it runs; train_records and held_out the data; examples and
    validation (None: nothing is held out) the data rendered; rows(epoch) the examples of an epoch, difficulty (examples,) what goes
    first in it (None: all are shuffled), mix what each set gives to the first epoch; steps the length of the run.
    `say` hears what takes long. Raises InputError at the first thing that is wrong.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] = lambda _: None) -> None:
        self.config, self.say = config, say
        self.inferred: list[Inferred] = []
        self.notices: list[str] = []
        self.held_out: Sequence[Record] = []
        self.train_records: Sequence[Record] = []
        self.examples: Examples
        self.validation: Examples | None = None
        self.rows: Callable[[int], Indices]
        self.difficulty: Numbers | None
        self.mix: list[dict[str, Any]]
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
        from tunesmith.evaluation.evaluator import check_rules

        self.entries, said = dataset.entries(self.config, self.say)
        self.notices += said
        self.tasks = Tasks(self.entries.train, self.config.objective["name"], self.entries.called)
        self.loaded, left_out = self.tasks.readable(sources.load(self.entries.train, self.tasks.own_reads))
        self.tasks.check_kinds(self.loaded)
        self.notices += [] if self.entries.card else self.loaded.notices  # of prepared rows the card tells more
        self.notices += left_out
        self._split(self.loaded.records)
        if self.config.evaluate and not self.held_out:
            raise InputError(
                "evaluate measures on the validation rows, but no row could be held out; give validation.path."
            )
        check_rules(self.held_out, self.config.evaluate)
        self.train_records = Chosen(self.loaded.records, self.train_rows)
        self.train_scored = self.tasks.scored(self.loaded.source[self.train_rows])
        dataset.check_tasks(self.train_records, self.train_scored)
        self.scores = dataset.read_scores(self.train_records, self.config.mixed())

    def _split(self, records: Sequence[Record]) -> None:
        """Set the numbers of the records to train on, the rows held out, and what is scored of those."""
        from tunesmith.data import splits

        validation, seed = self.config.validation, self.config.train.seed
        if validation is not False and "path" in validation:
            loaded, sentence = splits.from_files(records, validation, self.tasks.reads)
            self.train_rows, self.held_out = np.arange(len(records)), loaded.records
            self.held_out_scored = self.tasks.check_validation(loaded)
        elif self.entries.validation:
            tasks = Tasks(self.entries.validation, self.tasks.objective, self.entries.called)
            loaded, _ = tasks.readable(sources.load(self.entries.validation, tasks.own_reads))
            tasks.check_kinds(loaded)
            self.train_rows, self.held_out = np.arange(len(records)), loaded.records
            self.held_out_scored = tasks.scored(loaded.source)
            sentence = f"validation: the {len(self.held_out):,} rows that prepare held out"
        else:
            self.train_rows, chosen, sentence = splits.split(
                records, validation or None if validation is not False else False, seed
            )
            self.held_out = Chosen(records, chosen)
            self.held_out_scored = self.tasks.scored(self.loaded.source[chosen])
        self.notices.append(sentence)

    def _render(self) -> None:
        limit = self.config.train.max_length
        self.examples, notices, said = dataset.render_tasks(
            self.train_records, self.train_scored, self.tokenizer, limit
        )
        if int(self.examples.ids.max()) >= self.shape.vocabulary:
            raise InputError(
                f"the tokenizer makes token {int(self.examples.ids.max())}, but the model's vocabulary has "
                f"{self.shape.vocabulary}: they do not belong together."
            )
        if self.held_out:
            self.validation, _, more = dataset.render_tasks(self.held_out, self.held_out_scored, self.tokenizer, limit)
            said += more
        self.notices += notices + list(dict.fromkeys(said))
        self._mix()

    def _mix(self) -> None:
        """Settle which examples an epoch has and what comes first, and tell what each set gives."""
        seed, mixing, examples, loaded = self.config.train.seed, self.config.mixed(), self.examples, self.loaded
        own = dataset.examples_by_set(examples, loaded.source[self.train_rows], len(loaded.sources))
        tokens = [int(examples.lengths[numbers].sum()) for numbers in own]
        amounts = mixes.amounts([len(n) for n in own], tokens, [source.share for source in loaded.sources], mixing)

        def drawn(epoch: int) -> list[Indices]:
            return [mixes.draw(n, float(a), i, seed, epoch) for i, (n, a) in enumerate(zip(own, amounts, strict=True))]

        self.rows = lambda epoch: np.concatenate(drawn(epoch))
        self.difficulty = dataset.difficulty(examples, mixing, self.scores)
        self.mix = dataset.tell_mix(self.tasks, self.entries.paths, own, drawn(0), examples)
        if len(self.mix) > 1 or self.mix[0]["examples"] != self.mix[0]["available"]:
            self.notices.append(dataset.mix_sentence(self.mix, self.tasks.objective))

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
                lengths,
                self.rows,
                train.seed,
                train.tokens_per_step,
                train.batch_size,
                train.epochs,
                self.difficulty,
            )
        self._tell_unseen()
        self._infer(infer.infer_intervals(self.config, self.steps, amount))

    def _tell_unseen(self) -> None:
        """Say where a curriculum ends within its first epoch: those that are left are not any, but the hardest."""
        if self.difficulty is None:
            return
        train = self.config.train
        order = plan_steps(
            self.examples.lengths, self.rows, train.seed, train.tokens_per_step, train.batch_size, self.difficulty
        )
        done = next(islice(order, self.steps - 1, None))[0]
        if done < 1:
            said = f"the run ends after {done:.0%} of an epoch, so the hardest of mixing.curriculum are never seen"
            self.notices.append(f"{said}; raise train.{'max_steps' if train.max_steps else 'epochs'} to reach them")


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
