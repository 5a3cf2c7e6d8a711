"""What a run does otherwise whose model scores answers and writes none."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import registry
from tunesmith.config import RunConfig
from tunesmith.errors import InputError
from tunesmith.model import reward_config
from tunesmith.model.loading import adapter_config, resolve
from tunesmith.training.infer import Inferred

if TYPE_CHECKING:
    from tunesmith.model.reward import RewardPolicy
    from tunesmith.run import Run
    from tunesmith.training.objective import Metrics
    from tunesmith.training.parallel import World
    from tunesmith.training.prepare import Prepared


def asked(config: RunConfig) -> bool:
    """Whether the run's objective trains a reward model."""
    return getattr(registry.load("training.objectives", config.objective["name"]), "model", None) == "reward"


def begin(config: RunConfig) -> list[Inferred]:
    """Return how a run begins whose model is an adapter that writes: that is merged into its base first. InputError for what a reward
    model has not, for it writes nothing, or cannot keep."""
    name, adapter = config.objective["name"], config.adapter or {}
    if config.evaluate:
        raise InputError(
            f"evaluate measures what a model writes, and objective {name} trains one that scores; take evaluate away (accuracy and "
            "calibration are measured without it)."
        )
    if (config.regularizer or {}).get("name") == "kl_to_base":
        raise InputError(
            f"regularizer kl_to_base compares what models write, and objective {name} trains one that scores."
        )
    if "on" in adapter and adapter.get("how") != "merge":
        raise InputError(
            "adapter.how: stack makes one adapter of two, which keeps no head for a reward; say how: merge."
        )
    below = resolve(config.model.path).adapter
    if below is None or not {"from", "on"}.isdisjoint(adapter):
        return []
    if adapter_config(below).get("task_type") == reward_config.TASK:
        return []
    said = "the model is an adapter that writes: it is merged into its base, of which the reward model is made"
    return [Inferred("adapter", {**(adapter or {"name": "lora"}), "on": below, "how": "merge"}, said)]


def measure(prepared: "Prepared", policy: Any, world: "World") -> "tuple[Metrics, dict[str, Any]]":
    """Return what is measured of a reward model beside what its objective measures, and the report's facts; none without held-out rows."""
    from tunesmith.training import reward_report

    if prepared.validation is None:
        return {}, {}
    tokens = prepared.config.train.microbatch_tokens or 4096
    return reward_report.measure(policy, prepared.validation, prepared.held_out, tokens, world)


def settle(prepared: "Prepared", policy: "RewardPolicy", folder: Path, run: "Run") -> None:
    """Have the model's config and the tokenizer pad so that transformers finds each row's last token; write the config of an adapter's
    model into the result's `folder`."""
    examples, transformer = prepared.examples, policy.transformer
    ends = set(examples.ids[examples.offsets[1:] - 1].tolist())
    if said := reward_config.set_padding(transformer.config, prepared.tokenizer, ends):
        run.emit("notice", message=said)
    if prepared.wraps:
        reward_config.save(transformer, folder)


def tell(run: "Run", facts: dict[str, Any]) -> None:
    """Keep the report's facts in the run's results.json, and say it where scores follow length."""
    from tunesmith.training import reward_report

    reward_report.keep(run.folder / "results.json", facts)
    if alarm := (facts.get("length") or {}).get("alarm"):
        run.emit("notice", message=alarm)
