"""Who is compared over preference pairs: each trains LoRA, r = 16, on the same pairs in the same order, eight a step.

Each returns the tokens (Pair.tokens: prompts count for both answers) and the seconds of every step, and the seconds that the log-probs
of the reference took before the first one; those are cached and no part of a step.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from contenders import common_options, loop_of_ours, run_trainer
from pairs import Pair

PAIRS = 8  # per step: TRL's default


class Measured(NamedTuple):
    tokens: list[int]
    seconds: list[float]
    reference: float


def tunesmith(
    folder: str, pairs: list[Pair], steps: int, reward: bool, checkpointing: Any = "none", links: bool = True
) -> Measured:
    """links: whether a pair's prompt runs once."""
    from tunesmith.model.activations import checkpoint_activations
    from tunesmith.training.make_objective import make

    policy = _policy(folder, reward)
    policy.links = policy.links and links
    checkpoint_activations(policy.model, checkpointing)
    examples = _examples(pairs, reward)
    objective = make({"name": "reward" if reward else "dpo"})
    began = time.perf_counter()
    if not reward:
        examples.constants["reference"] = _reference(policy, objective, examples)
    reference = time.perf_counter() - began
    budget = {"tokens_per_step": None, "batch_size": PAIRS}
    tokens, seconds, _ = loop_of_ours(policy, objective, examples, steps, budget)
    return Measured(tokens, seconds, reference)


def _policy(folder: str, reward: bool) -> Any:
    import torch

    from tunesmith.model.loading import ModelSource, load_model
    from tunesmith.model.lora import fuse
    from tunesmith.model.policy import make_policy
    from tunesmith.model.reward import make_reward_policy
    from tunesmith.registry import load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = ModelSource(folder, attributes=(("reward", 1.0),) if reward else ())
    model = load("model.adapters", "lora").attach(load_model(source, "bfloat16", device=device)).model
    fuse(model)
    return (make_reward_policy if reward else make_policy)(model.to(device))[0]


def _examples(pairs: list[Pair], reward: bool) -> Any:
    """Return the pairs as a run has them; of a reward model's sequences the last token is the one that is asked for."""
    from tunesmith.data.records import Examples

    sequences = [(len(p.prompt), p.prompt + answer) for p in pairs for answer in (p.chosen, p.rejected)]
    begins = [len(ids) - 1 if reward else prompt for prompt, ids in sequences]
    n = len(pairs)
    return Examples(
        ids=np.concatenate([ids for _, ids in sequences]).astype(np.int32),
        scored=np.concatenate([np.arange(len(ids)) >= b for (_, ids), b in zip(sequences, begins, strict=True)]),
        offsets=np.cumsum([0] + [len(ids) for _, ids in sequences]),
        record=np.repeat(np.arange(n), 2),
        origins=[],
        answer=np.tile(np.arange(2, dtype=np.int32), n),
        groups=2 * np.arange(n + 1),
        values=np.full(2 * n, np.nan, np.float32),
    )


def _reference(policy: Any, objective: Any, examples: Any) -> Any:
    from tunesmith.training.reference_logps import Clock, log_probs, look_up
    from tunesmith.training.reference_run import of_steps
    from tunesmith.training.reference_store import Store

    steps = np.arange(examples.rows).reshape(-1, PAIRS)
    known = look_up(examples, of_steps(objective, policy, examples, steps, 2048), [])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TUNESMITH_CACHE"] = cache
        return log_probs(policy, known, Store("benchmark"), Clock(print, known.tokens))


def trl_defaults(folder: str, pairs: list[Pair], steps: int, reward: bool) -> Measured:
    return _trl(folder, pairs, steps, reward, folder, {})  # by the path: loaded TRL's own way, with checkpointing


def trl_tuned(folder: str, pairs: list[Pair], steps: int, reward: bool, checkpointing: bool = False) -> Measured:
    """Weights in bf16 as one would load them by hand; two pairs at a time, which have less padding than eight."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind, how = (AutoModelForSequenceClassification, {"num_labels": 1}) if reward else (AutoModelForCausalLM, {})
    model = kind.from_pretrained(folder, dtype=torch.bfloat16, **how)
    options = {
        "gradient_checkpointing": checkpointing,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": PAIRS // 2,
    }
    return _trl(folder, pairs, steps, reward, model, options)


def _trl(folder: str, pairs: list[Pair], steps: int, reward: bool, model: Any, options: dict[str, Any]) -> Measured:
    """TRL's trainer on token ids. The pairs stand in the order that our loop takes them in."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    from tunesmith.training.batch import epoch_order

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset  # which is tokens already

    ordered = [pairs[i] for i in epoch_order(len(pairs), seed=0, epoch=0)]
    adapter = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    with tempfile.TemporaryDirectory() as output:
        common = {
            **common_options(output, steps),
            "train_sampling_strategy": "sequential",
            "max_length": None,
            **options,
        }
        if reward:
            rows = [{"chosen_ids": p.prompt + p.chosen, "rejected_ids": p.prompt + p.rejected} for p in ordered]
            kind, config = RewardTrainer, RewardConfig(**common)
            lora = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **adapter)
        else:
            rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in ordered]
            kind, config = OnIds, DPOConfig(**common, precompute_ref_log_probs=True)
            lora = LoraConfig(task_type="CAUSAL_LM", **adapter)
        tokenizer, data = AutoTokenizer.from_pretrained(folder), Dataset.from_list(rows)
        began = time.perf_counter()
        trainer = kind(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
        reference = 0.0 if reward else time.perf_counter() - began
        tokens, seconds, _ = run_trainer(trainer, _tokens)
    return Measured(tokens, seconds, reference)


def _tokens(row: dict[str, Any]) -> int:
    return 2 * len(row.get("prompt_ids", ())) + len(row["chosen_ids"]) + len(row["rejected_ids"])


CONTENDERS: dict[str, Callable[..., Measured]] = {
    "tunesmith": tunesmith,
    "tunesmith-unshared": partial(tunesmith, links=False),
    "tunesmith-checkpointing": partial(tunesmith, checkpointing="full"),
    "trl-defaults": trl_defaults,
    "trl-tuned": trl_tuned,
    "trl-checkpointing": partial(trl_tuned, checkpointing=True),
}
CHECKPOINTING = ("trl-defaults", "trl-checkpointing")  # peers whose memory is that of activation checkpointing
