"""What is checked, read and inferred before a run's folder is opened and any weight is loaded."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tunesmith.model import quantize, reward_config, stacking
from tunesmith.model.adapters._attached import Attached
from tunesmith.model.loading import (
    ModelSource,
    adapter_config,
    check_weights,
    load_config,
    load_tokenizer,
    resolve,
    safetensors_shapes,
    structure,
)
from tunesmith.model.regional import check_compiler
from tunesmith.training import balance, dataset, infer, optimizers, reference, reward_run
from tunesmith.training import resolve as resolving
from tunesmith.training.companions import Companion
from tunesmith.training.dataset import Tasks
from tunesmith.training.infer import Amount, Inferred
from tunesmith.training.plan import count_steps, plan_steps
from tunesmith.training.structure import meta_model, said_name, shape

if TYPE_CHECKING:
    from tunesmith.model.new_tokens import NewTokens


class Prepared:
    """A run whose model, data and settings were found good; `config` has every value, `inferred` the reasons of those not asked for.

    source, tokenizer, shape and machine describe the model and where it runs; train_records and held_out the data; examples and
    validation (None: nothing is held out) the data rendered; rows(epoch) the rows of an epoch, difficulty (rows,) what goes
    first in it (None: all are shuffled), mix what each set gives to the first epoch; steps the length of the run.
    `say` hears what takes long. Raises InputError at the first thing that is wrong.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] = lambda _: None) -> None:
        self.config, self.say = config, say
        self.inferred: list[Inferred] = []
        self.notices: list[str] = []
        self.companion: Companion | None = None
        self.method = ""  # what is trained, of model/adapters: by it the rate is inferred
        self.below: str | None = None  # the folder of the old adapter that a new one is put on
        self.wraps = True  # the result is an adapter, no whole model
        self.held_out: Sequence[Record] = []
        self.train_records: Sequence[Record] = []
        self.examples: Examples
        self.validation: Examples | None = None
        self.rows: Callable[[int], Indices]
        self.difficulty: Numbers | None
        self.mix: list[dict[str, Any]]
        self.steps: int
        self.rewards = reward_run.asked(config)  # the model scores answers and writes none
        if self.rewards and (found := reward_run.begin(config)):
            self._infer(found)
        self.source = self._quantized(self._source())
        check_weights(self.source)
        self.reference = reference.source(self.config.objective)
        self._read_rows()  # before transformers is imported: a broken row is said at once
        self._check_model()
        self._render()
        self._schedule()

    def _check_model(self) -> None:
        if self.rewards:
            self.source = reward_config.to_train(self.source, self.config.objective.get("attributes"))
        self.tokenizer, notices = load_tokenizer(replace(self.source, adapter=self.below or self.source.adapter))
        self.notices += notices
        config = load_config(self.source)
        if not self.rewards:
            reference.refuse_reward_model(self.source, config, "the model")
        model = meta_model(config, self.source)
        self.new_tokens = self._extend(model)
        self.shape = shape(model.config, model)
        self.machine = infer.machine(self.config.train.device)
        optimizers.check(self.config.optimizer["name"], self.machine.device)
        if self.config.train.compile:
            check_compiler(self.machine.device)
        self._infer(infer.infer_model(self.config, self.shape, self.machine))
        self._check_quantized(config, model)
        if reads_clock(self.tokenizer):
            self._infer(infer.infer_date(self.config))
            fix_clock(self.tokenizer, str(self.config.train.date))
        length, context = self.config.train.max_length, self.shape.context
        if length is not None and context is not None and length > context:
            raise InputError(f"train.max_length {length} is beyond the model's context of {context} tokens; lower it.")
        self.shape = replace(self.shape, trained=self._check_adapter(model))

    def _extend(self, model: Any) -> "NewTokens":
        """Extend tokenizer and vocabulary by what the run and the adapter it continues add to them."""
        from tunesmith.model import new_tokens, token_files

        for adapter in filter(None, (self.source.adapter, self.below)):
            new_tokens.grow(model, token_files.size(adapter, model))
        learned = token_files.ids(self.source.adapter) if self.source.adapter else []
        asked, rows = self.config.model.new_tokens or [], len(model.get_input_embeddings().weight)
        found = new_tokens.NewTokens(size=rows)
        if asked:
            found, said = new_tokens.extend(self.tokenizer, asked, rows)
            self.notices += said
            new_tokens.grow(model, found.size)
        return replace(found, ids=tuple(sorted({*found.ids, *learned})))

    def _source(self) -> ModelSource:
        """Return base and adapter: of adapter.from, or of a model that is an adapter itself, which is trained on as it is."""
        adapter, model = self.config.adapter, self.config.model.path
        key = next((key for key in ("from", "on") if adapter is not None and key in adapter), None)
        if adapter is not None and key is not None:
            started = resolve(adapter[key]) if Path(adapter[key]).is_dir() else resolve(model, adapter[key])
            if started.adapter is None:
                raise InputError(
                    f"adapter.{key}: {adapter[key]} holds a whole model, no adapter; give it as the model."
                )
            if "model" not in self.config.model_fields_set:
                self._infer([Inferred("model.path", said_name(started.base), "what the adapter was trained on")])
            elif resolve(model).adapter not in (None, started.adapter):
                raise InputError(
                    f"the model {model} is an adapter, and adapter.{key} names another; keep one of the two."
                )
            found = ModelSource(resolve(self.config.model.path).base, started.adapter, started.quantize)
            if key == "from":
                return found
            check_weights(found)
            self.below = started.adapter
            return ModelSource(found.base, None, None if adapter.get("how") == "merge" else found.quantize)
        source = resolve(model)
        if source.adapter is not None:
            if adapter is not None:
                raise InputError(
                    f"the model {model} already is an adapter on {said_name(source.base)}, and training continues it as it is; "
                    "leave the adapter out, or train from that base."
                )
            self._infer([Inferred("adapter", {"from": model}, "the model is an adapter: it is trained on")])
        return source

    def _quantized(self, source: ModelSource) -> ModelSource:
        """Return the source as it is quantised: as the run says, or else as the adapter says that it continues, or that it trains."""
        if self.config.model.quantize is None:
            adapter, how = (self.config.adapter or {}).get("name"), source.quantize
            known = adapter in registry.names("model.adapters")
            own = getattr(registry.load("model.adapters", str(adapter)), "QUANTIZE", None) if known else None
            if how is not None:
                said = "the adapter was trained on such a base"
                self._infer([Inferred("model.quantize", how.name, said)])
                if how.name in ("nf4", "fp4"):
                    self._infer([Inferred("model.double_quantization", how.double, said)])
            elif own is not None:
                self._infer([Inferred("model.quantize", own, f"adapter {adapter} is for such a base")])
        return replace(source, quantize=self.config.quantization())

    def _check_quantized(self, config: Any, model: Any) -> None:
        """Quantise the model without memory, if the run does, and tell what that leaves; InputError where it cannot be."""
        how, base = self.source.quantize, said_name(self.source.base)
        quantize.check(how, config, base, self.machine.device)
        stored = quantize.described(getattr(config, "quantization_config", None) or {})
        quantize.check_adapter(how or stored, (self.config.adapter or {}).get("name", ""))
        if how is None:
            return
        from tunesmith.model.quantized_layers import quantize_model

        share = quantize_model(model, how)
        size = 4 if self.config.train.dtype == "float32" else 2
        self.shape = replace(self.shape, weights=quantize.weight_bytes(model.parameters(), size))
        self.notices.append(quantize.sentence(how, share, self.shape.weights or 0, str(self.config.train.dtype), model))

    def _check_adapter(self, model: Any) -> int:
        """Attach the adapter to the model without memory: targets that match nothing are found now. Return how many weights train."""
        from tunesmith.model import adapter_files, virtual
        from tunesmith.model.new_tokens import train_rows

        adapter = self.config.adapter or {}
        self.method = adapter.get("name", "")
        if self.source.adapter is not None:
            adapter_files.check(self.source.adapter, model, said_name(self.source.base))
            self.method = adapter_files.method(self.source.adapter)
            if said := adapter_files.notice(self.source.adapter):
                self.notices.append(said)
            self._leave_room(int(adapter_config(self.source.adapter).get("num_virtual_tokens") or 0))
            return self._trains(safetensors_shapes(Path(self.source.adapter) / "adapter_model.safetensors").items())
        attached = attach(model, adapter)
        if self.new_tokens.ids:
            train_rows(attached.model, self.new_tokens.ids)
        elif adapter.get("name") == "trainable_tokens":
            raise InputError(
                "the adapter trainable_tokens trains the rows of model.new_tokens: name some tokens there."
            )
        self.wraps = hasattr(attached.model, "peft_config")
        if self.below is not None:
            how = stacking.split(adapter)[1]["how"]
            stacking.check(
                structure(replace(self.source, attributes=())),
                self.below,
                how,
                said_name(self.source.base),
                attached,
                self.config.model.quantize,
            )
        self._leave_room(virtual.count(attached.model))
        self.companion = attached.companion
        if self.companion is not None and self.config.train.optimizer_in_backward:
            raise InputError(
                f"train.optimizer_in_backward drops each gradient before adapter {adapter['name']} can look at it; take one of the two "
                "away."
            )
        self.notices += attached.notices
        trained = [(n, p.shape) for n, p in attached.model.named_parameters() if p.requires_grad]
        output = attached.model.get_output_embeddings()
        self.shape = replace(self.shape, trains_output=bool(output is not None and output.weight.requires_grad))
        return self._trains(trained)

    def _trains(self, shapes: Iterable[tuple[str, Sequence[int]]]) -> int:
        """Note what the optimizer keeps on the device for weights of these names and shapes; return how many numbers they have."""
        trained = list(shapes)
        kept = optimizers.on_device(self.config.optimizer["name"], trained, self.machine.device)
        self.shape = replace(self.shape, optimizer=kept)
        return sum(math.prod(shape) for _, shape in trained)

    def _leave_room(self, tokens: int) -> None:
        """Make room for an adapter's virtual tokens in a longest example that was inferred; InputError for one that was asked for."""
        context, length = self.shape.context, self.config.train.max_length
        if not tokens or context is None or length is None or length + tokens <= context:
            return
        if tokens >= context or all(item.key != "train.max_length" for item in self.inferred):
            raise InputError(
                f"train.max_length {length} and the adapter's {tokens} virtual tokens are beyond the model's context of {context} "
                "tokens; lower one of the two."
            )
        self.inferred = [item for item in self.inferred if item.key != "train.max_length"]
        self._infer(
            [Inferred("train.max_length", context - tokens, f"the model's context without {tokens} virtual tokens")]
        )

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
        self.tasks.check_answers(self.train_records, self.config.objective)
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
        objective = self.tasks.modules[self.tasks.objective]
        self.examples, notices, said = dataset.render_rows(
            self.train_records, self.train_scored, self.tokenizer, limit, objective, self.config.objective
        )
        if int(self.examples.ids.max()) >= self.shape.vocabulary:
            raise InputError(
                f"the tokenizer makes token {int(self.examples.ids.max())}, but the model's vocabulary has "
                f"{self.shape.vocabulary}: they do not belong together."
            )
        if self.held_out:
            self.validation, _, more = dataset.render_rows(
                self.held_out, self.held_out_scored, self.tokenizer, limit, objective, self.config.objective
            )
            said += more
        self.notices += notices + list(dict.fromkeys(said))
        if self.reference is not None:
            sets = [self.examples] if self.validation is None else [self.examples, self.validation]
            called = reference.name(self.config.objective)
            reference.check(self.reference, called, self.tokenizer, sets, self.machine.device)
        self._mix()

    def _mix(self) -> None:
        """Settle which examples an epoch has and what comes first, and tell what each set gives."""
        seed, mixing, examples, loaded = self.config.train.seed, self.config.mixed(), self.examples, self.loaded
        own = dataset.rows_by_set(examples, loaded.source[self.train_rows], len(loaded.sources))
        tokens = [int(examples.row_lengths[numbers].sum()) for numbers in own]
        amounts = mixes.amounts([len(n) for n in own], tokens, [source.share for source in loaded.sources], mixing)

        def drawn(epoch: int) -> list[Indices]:
            return [mixes.draw(n, float(a), i, seed, epoch) for i, (n, a) in enumerate(zip(own, amounts, strict=True))]

        self.rows = lambda epoch: np.concatenate(drawn(epoch))
        self.difficulty = dataset.difficulty(examples, mixing, self.scores)
        self.mix = dataset.tell_mix(self.tasks, self.entries.paths, own, drawn(0), examples)
        if len(self.mix) > 1 or self.mix[0]["examples"] != self.mix[0]["available"]:
            self.notices.append(dataset.mix_sentence(self.mix, self.tasks.objective))
        if hasattr(self.tasks.modules[self.tasks.objective], "balance"):
            self._balance()

    def _balance(self) -> None:
        """Infer how much good and bad verdicts count, by how many an epoch has of each."""
        good, bad = balance.counted(self.examples, self.rows(0))
        found, said = balance.infer_weights(self.config, self.tasks.modules[self.tasks.objective], good, bad)
        self._infer(found)
        self.notices += said

    def _schedule(self) -> None:
        lengths = self.examples.row_lengths
        validation_tokens = int(self.validation.lengths.sum()) if self.validation is not None else 0
        first = self.rows(0)
        amount = Amount(len(first), int(lengths[first].sum()), int(lengths.max()), validation_tokens)
        if self.config.train.microbatch_tokens and self.config.train.microbatch_tokens < amount.longest:
            self.notices.append(
                f"train.microbatch_tokens is below the longest example ({amount.longest} tokens), which runs alone"
            )
        named = self.config.model_copy(update={"adapter": {"name": self.method}})  # also where adapter says from
        self._infer(infer.infer_schedule(named, self.shape, self.machine, amount))
        self.notices.append(infer.memory_notice(self.config, self.shape, self.machine, amount))
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
        if self.companion is not None:
            self.companion.check(self.steps)
        self._tell_unseen()
        self._infer(infer.infer_intervals(self.config, self.steps, amount))

    def _tell_unseen(self) -> None:
        """Say where a curriculum ends within its first epoch: those that are left are not any, but the hardest."""
        if self.difficulty is None:
            return
        train = self.config.train
        order = plan_steps(
            self.examples.row_lengths, self.rows, train.seed, train.tokens_per_step, train.batch_size, self.difficulty
        )
        done = next(islice(order, self.steps - 1, None))[0]
        if done < 1:
            said = f"the run ends after {done:.0%} of an epoch, so the hardest of mixing.curriculum are never seen"
            self.notices.append(f"{said}; raise train.{'max_steps' if train.max_steps else 'epochs'} to reach them")


def attach(model: Any, adapter: dict[str, Any]) -> Attached:
    """Attach to the model what `adapter` ({name, keyword arguments}) says."""
    from tunesmith.model.reward import train_head

    own, _ = stacking.split(adapter)
    checked = named(own, "model.adapters", "attach", "adapter", "the run")
    attached: Attached = registry.load("model.adapters", adapter["name"]).attach(model, **checked)
    train_head(attached.model, adapter["name"])
    return attached
