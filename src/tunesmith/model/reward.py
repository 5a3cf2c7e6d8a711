"""Reward models: a causal trunk, run flat as the policy is, and a linear layer that scores each answer at its last token."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.model import reward_config
from tunesmith.model.loading import ModelSource
from tunesmith.model.policy import Policy, inputs_of, make_policy
from tunesmith.model.reward_config import Attributes, attributes_of, is_scorer
from tunesmith.training.batch import FlatBatch

HEAD = "score"  # transformers' name of the layer


class RewardPolicy(Policy):
    """Wraps a transformers ...ForSequenceClassification (or PeftModel of one). `make_reward_policy` finds out how it can be run.

    trunk: the hidden states of a causal trunk at the answers' last tokens meet the layer `score`; otherwise the model's own forward is
    called with each answer alone.
    """

    @classmethod
    def plain(cls, model: Any) -> "RewardPolicy":
        """Return the policy that runs the model by its trunk as transformers does, padded: what a probe compares with."""
        return cls(model, flat=False, trunk=True)

    @property
    def attributes(self) -> Attributes:
        """What the scores are called, and their weights in the combined one."""
        return attributes_of(self.transformer.config)

    @property
    def _decoder(self) -> Any:
        return self.transformer.base_model

    def forward(self, batch: FlatBatch) -> Tensor:
        """Return the scores of every answer of the batch, float32 (float64 of float64 models), (A,K); where it has no answers, of
        the text before each target, (N,K)."""
        self._routed.clear()
        self._kept = None
        places = batch.target_index if batch.answers is None else batch.answers.last
        if not self.trunk:
            return self._each_alone(batch, places)
        return self._scored(self._hidden(replace(batch, target_index=places)))

    def combined(self, scores: Tensor) -> Tensor:
        """Return the weighted sum (A,) of scores (A,K)."""
        return scores @ scores.new_tensor([weight for _, weight in self.attributes])

    def _scored(self, hidden: Tensor) -> Tensor:
        """Return the scores (A,K) of hidden states (A,H): bf16 holds 8 bits, too few for how far two scores are apart."""
        layer = head_of(self.transformer)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return F.linear(hidden.to(wide), layer.weight.to(wide), None if layer.bias is None else layer.bias.to(wide))

    def _whole(self, batch: FlatBatch) -> Tensor:
        return self._each_alone(batch, batch.target_index)

    def _each_alone(self, batch: FlatBatch, places: Tensor) -> Tensor:
        """Return the scores (A,K) of the text up to each of `places` by the model's own forward."""
        starts, found = np.cumsum([0, *batch.lengths]), self.virtual
        module = self.model if found is None else self.transformer
        scores = []
        with _no_padding(self.transformer):
            for place in places.tolist():
                segment = int(np.searchsorted(starts, place, side="right")) - 1
                ids, parent = batch.ids[starts[segment] : place + 1], batch.parents[segment]
                if parent >= 0:
                    ids = torch.cat([batch.ids[starts[parent] : starts[parent + 1]], ids])
                inputs, _, _ = inputs_of(ids[None], torch.ones_like(ids)[None], found)
                scores.append(module(**inputs).logits[0])
        joined = torch.stack(scores)
        return joined.to(torch.promote_types(joined.dtype, torch.float32))


@contextmanager
def _no_padding(model: Any) -> Iterator[None]:
    """Within it the model takes a row's last token for the last one, whatever it is: no row is padded."""
    holders = [model.config, model.config.get_text_config()]
    before = [holder.pad_token_id for holder in holders]
    for holder in holders:
        holder.pad_token_id = None
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.pad_token_id = value


def head_of(model: Any) -> Any:
    """Return the linear layer that scores: PEFT's trained copy of it, where there is one and it is switched on; None without."""
    layer = getattr(model, HEAD, None)
    copies = getattr(layer, "modules_to_save", None)
    if layer is None or copies is None:
        return layer
    name = layer.active_adapter
    name = name[0] if isinstance(name, list) else name
    return layer.original_module if layer.disable_adapters or name not in copies else copies[name]


def make_reward_policy(model: Any) -> tuple[RewardPolicy, str]:
    """Return the policy and a sentence on how it runs, as make_policy does: flat, padded, or each answer alone.

    A probe compares the scores of a random head, for a new one scores everything 0; and the trunk with the model's own forward.
    """
    whole = RewardPolicy(model, flat=False, trunk=False)
    if not isinstance(head_of(whole.transformer), torch.nn.Linear):
        return (
            whole,
            f"each answer alone: {type(whole.transformer).__name__} does not score by a linear layer named {HEAD}",
        )
    with _random_head(whole.transformer):
        if why := _trunk_differs(whole):
            return whole, f"each answer alone: {why}"
        policy, sentence = make_policy(model, RewardPolicy)
    assert isinstance(policy, RewardPolicy)
    return policy, sentence


def _trunk_differs(whole: RewardPolicy) -> str:
    """Return why the trunk and the head are not all of the model's forward, or nothing."""
    from tunesmith.model import probe

    batch = probe.flat_batch(probe.random_ids(whole, 12).cpu(), (12,), (-1,)).to(next(whole.parameters()).device)
    training = whole.model.training
    whole.eval()
    try:
        with torch.no_grad():
            first, second = (policy(batch) for policy in (whole, RewardPolicy.plain(whole.model)))
        far = float((first - second).abs().mean() / first.abs().mean())
    except Exception as e:  # model code raises what it likes
        return (str(e).strip().splitlines() or [type(e).__name__])[0]
    finally:
        whole.train(training)
    return "" if far <= 0.02 else f"the trunk's scores differ from the model's own by {far:.0%}"


@contextmanager
def _random_head(model: Any) -> Iterator[None]:
    weight = head_of(model).weight
    before, generator = weight.detach().clone(), torch.Generator().manual_seed(0)
    drawn = torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
    with torch.no_grad():
        weight.copy_(drawn)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def load_reward(source: ModelSource, dtype: str = "auto", device: str = "cpu") -> tuple[RewardPolicy, Any]:
    """Return a trained reward model, frozen and in eval mode on `device`, and its tokenizer.

    source: of loading.resolve; a ...ForSequenceClassification folder or hub id, or an adapter of one. dtype: "bfloat16", "float32" or
    "auto", the checkpoint's own, but float32 for small models on a CPU. InputError, before a weight is loaded, where the model is a
    causal one.
    """
    from tunesmith.model.inference import SMALL
    from tunesmith.model.loading import load_model, load_tokenizer, structure

    source = reward_config.reward_source(source)
    tokenizer, _ = load_tokenizer(source)
    if dtype == "auto" and device == "cpu" and sum(p.numel() for p in structure(source).parameters()) <= SMALL:
        dtype = "float32"
    model = load_model(source, dtype, device=device).to(device).eval().requires_grad_(False)
    return make_reward_policy(model)[0].eval(), tokenizer


def train_head(model: Any, adapter: str) -> None:
    """Let the head of a reward model be trained beside its adapter; InputError for an adapter that keeps none in its file."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = head_of(base)
    if not is_scorer(base) or layer is None or layer.weight.requires_grad:
        return
    if hasattr(model, "peft_config"):
        raise InputError(
            f"adapter {adapter} keeps no head in its file, and a reward model's has to be trained; take lora, another of PEFT's kinds, or "
            "full."
        )
    layer.weight.requires_grad_(True)


def from_causal(model: Any, attributes: Attributes) -> Any:
    """Return a reward model of a causal one's trunk, which both then have, with a new head."""
    from transformers import AutoModelForSequenceClassification

    config = reward_config.made(model.config, attributes, None, model.config.name_or_path)
    with torch.device("meta"):
        new = AutoModelForSequenceClassification.from_config(config)
    first = next(model.parameters())
    new.score = torch.nn.Linear(
        new.score.in_features, len(attributes), bias=False, device=first.device, dtype=first.dtype
    )
    setattr(new, new.base_model_prefix, model.base_model)
    return reward_config.begun(new, model.config)
