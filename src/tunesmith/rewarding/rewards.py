"""What --reward names: a reward model, or a metric that scores answers (`rule`: a rule in the row's `check`, else its reference)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tunesmith import registry
from tunesmith.data.layout import chat_texts
from tunesmith.data.records import Chat, Message, Record
from tunesmith.errors import InputError, did_you_mean
from tunesmith.evaluation.items import Item
from tunesmith.evaluation.statistics import Floats
from tunesmith.model import loading, reward_config
from tunesmith.model.loading import ModelSource

METRICS = "evaluation.metrics"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of answers as a reward: no model is asked."""

    name: str
    module: ModuleType

    def check(self, items: Sequence[Item]) -> None:
        """InputError naming the first row that the metric cannot score."""
        from tunesmith.evaluation.evaluator import check_rules

        check_rules([item.record for item in items], [{"name": self.name}])
        for item in items:
            if self.module.score(replace(item, answer="")) is None:
                raise InputError(
                    f"{item.record.origin}: the reward {self.name} has nothing to score an answer by; give the row a rule (check) or a "
                    "reference, or name a reward model."
                )

    def score(self, items: Sequence[Item], answers: Sequence[Sequence[str]]) -> list[Floats]:
        """Return the score of each answer to each item, (n,) per item; NaN where the metric gives none."""
        return [
            np.array([self._one(replace(item, answer=answer)) for answer in said], dtype=np.float64)
            for item, said in zip(items, answers, strict=True)
        ]

    def _one(self, item: Item) -> float:
        found = self.module.score(item)
        return found[0] / found[1] if found and found[1] else math.nan


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model that was found good; its weights are loaded when it first scores."""

    name: str
    source: ModelSource
    tokenizer: Any
    device: str

    def check(self, items: Sequence[Item]) -> None:
        """InputError naming the first row that the reward model's template refuses, and where no prompt leaves room for an answer."""
        texts = list(chat_texts([answered(item, ".") for item in items], self.tokenizer))
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids]
        context = getattr(loading.load_config(self.source).get_text_config(), "max_position_embeddings", None)
        if context is not None and min(lengths) > context:
            raise InputError(
                f"{items[0].record.origin}: prompt and answer are longer than the context of the reward model {self.name} ({context} "
                "tokens); shorten the prompt, or take a reward model with a longer one."
            )

    def score(self, items: Sequence[Item], answers: Sequence[Sequence[str]]) -> list[Floats]:
        """Return the score of each answer to each item, (n,) per item; an answer that is there twice is scored once.

        NaN for an empty answer, which no reward model is trained on, and for what is longer than its context.
        """
        distinct = [[text for text in dict.fromkeys(said) if text] for said in answers]
        chats = [answered(item, text) for item, said in zip(items, distinct, strict=True) for text in said]
        scores = iter(self.score_chats(chats).tolist() if chats else [])
        found = [{text: next(scores) for text in said} for said in distinct]
        return [np.array([of.get(text, np.nan) for text in said]) for of, said in zip(found, answers, strict=True)]

    def score_chats(self, chats: Sequence[Chat]) -> Floats:
        """Return the reward of each chat's last answer, (N,); NaN for one that is longer than the reward model's context."""
        return self.score_heads(chats)[1]

    def score_heads(self, chats: Sequence[Chat]) -> tuple[Floats, Floats, list[str]]:
        """Return the scores of each head (N,K), what they make together (N,), and the heads' names."""
        from tunesmith.model.inference import held_in
        from tunesmith.model.reward import load_reward
        from tunesmith.model.reward_scores import score_chats

        policy, tokenizer = load_reward(self.source, held_in(self.source, self.device), self.device)
        parts, combined = score_chats(policy, tokenizer, chats)
        return parts, combined, [name for name, _ in policy.attributes]


Reward = Metric | RewardModel


def answered(item: Item, text: str) -> Chat:
    """Return the item's prompt and an answer to it, which alone is trained on."""
    said: Message = {"role": "assistant", "content": text}
    record: Record = item.record
    tools, trained = getattr(record, "tools", None), [*[False] * len(item.prompt), True]
    return Chat([*item.prompt, said], trained, record.origin, tools, record.extra)


def named(name: str) -> Metric | ModelSource:
    """Return what a name stands for: a metric of answers, or a model as loading.resolve finds it, whatever its kind.

    InputError for what is neither; nothing heavy is imported.
    """
    if name in registry.names(METRICS):
        module = registry.load(METRICS, name)
        if module.NEEDS != "answers":
            wanted = [m for m in registry.names(METRICS) if registry.load(METRICS, m).NEEDS == "answers"]
            raise InputError(
                f"the metric {name} scores no single answer; as a reward give {', '.join(wanted)}, or a reward model."
            )
        return Metric(name, module)
    near = did_you_mean(name, registry.names(METRICS))
    if near.startswith(" Did") and not Path(name).exists():
        raise InputError(f'there is no reward "{name}", neither a metric nor a folder.{near}')
    return loading.resolve(name)


def find(name: str, device: str | None = None) -> Reward:
    """Return what a name stands for: a metric of answers, or a reward model.

    InputError for what is neither, and for a model that is no reward model; no weight is loaded.
    """
    from tunesmith.model.inference import choose_device

    found = named(name)
    if isinstance(found, Metric):
        return found
    source = reward_config.reward_source(found)
    loading.check_weights(source)
    return RewardModel(name, source, loading.load_tokenizer(source)[0], choose_device(device))
