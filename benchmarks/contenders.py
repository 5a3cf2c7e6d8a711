"""Who is compared: each trains the same rows of the same model for some steps and returns (tokens, seconds) of every step.

tokens are real ones: padding is work, not throughput. `seconds` of tunesmith come with the share that is neither forward, backward
nor optimizer.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import PACKED, Rows

ROWS = 8  # rows per optimizer step: the peers' default batch
Measured = tuple[list[int], list[float], float | None]


def tunesmith(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    return _tunesmith(folder, rows, shape, adapter, steps, "none")


def tunesmith_checkpointing(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    return _tunesmith(folder, rows, shape, adapter, steps, "full")


def _tunesmith(folder: str, rows: Rows, shape: str, adapter: str, steps: int, checkpointing: Any) -> Measured:
    import torch

    from tunesmith.data.records import Examples
    from tunesmith.model.activations import checkpoint_activations
    from tunesmith.model.loading import ModelSource, load_model
    from tunesmith.model.lora import fuse
    from tunesmith.model.policy import make_policy
    from tunesmith.model.quantize import Quantization
    from tunesmith.registry import load
    from tunesmith.training.objective import Objective
    from tunesmith.training.objectives import sft

    offsets = np.cumsum([0] + [len(ids) for ids, _ in rows])
    scored = np.concatenate([np.arange(len(ids)) >= p for ids, p in rows])
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int32)
    examples = Examples(ids, scored, offsets, np.arange(len(rows)), [])
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    source = ModelSource(folder, None, Quantization("nf4") if adapter == "qlora" else None)
    model = load_model(source, "bfloat16", device=device)
    model = load("model.adapters", "lora" if adapter == "qlora" else adapter).attach(model).model
    fuse(model)
    policy, _ = make_policy(model.to(device))
    checkpoint_activations(model, checkpointing)
    budget = (
        {"tokens_per_step": 2 * PACKED[shape], "batch_size": None}
        if on_gpu
        else {"tokens_per_step": None, "batch_size": ROWS}
    )
    return loop_of_ours(policy, Objective(sft.loss), examples, steps, budget)


def loop_of_ours(policy: Any, objective: Any, examples: Any, steps: int, budget: dict[str, int | None]) -> Measured:
    """Train a policy by tunesmith's own loop, with a step's rows or tokens as `budget` says."""
    import torch

    from tunesmith.run import Run
    from tunesmith.training.loop import Loop
    from tunesmith.training.optimizers.adamw import make as adamw
    from tunesmith.training.plan import Plan

    on_gpu = torch.cuda.is_available()
    plan = Plan(
        steps=steps, microbatch_tokens=16384 if on_gpu else 2048, learning_rate=1e-4, schedule="linear", warmup=0, clip_norm=1.0,
        seed=0, evaluate_every=10**9, checkpoint_every=10**9, keep_last=1, early_stopping=None, **budget,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        loop = Loop(
            Run(Path(output)), policy, objective, examples, lambda _: np.arange(examples.rows), plan,
            lambda masters: adamw(masters, learning_rate=1e-4), dict, "",
        )  # fmt: skip
        loop.save = lambda *_: None  # type: ignore[method-assign]  # checkpoints are not what is measured
        work = [0.0] if not on_gpu else None  # on a GPU calls return before the work is done
        if work is not None:
            policy.forward = _timed(policy.forward, work)  # type: ignore[method-assign]
            torch.Tensor.backward = _timed(torch.Tensor.backward, work)  # type: ignore[method-assign]
            loop.optimizer.step = _timed(loop.optimizer.step, work)  # type: ignore[method-assign]
        progress = loop.train()
    overhead = None if work is None else 1 - work[0] / sum(progress.step_seconds)
    return progress.step_tokens, progress.step_seconds, overhead


def _timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            total[0] += time.perf_counter() - began

    return call


def trl_defaults(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    return _trl(folder, rows, adapter, steps, folder, {})  # by the path: loaded TRL's own way, with checkpointing


def trl_tuned(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    """Packing (best fit, documents kept apart), no activation checkpointing, weights in bf16 as one would load them by hand."""
    return _trl(folder, rows, adapter, steps, _bf16(folder, adapter), _tuned(shape, checkpointing=False))


def trl_checkpointing(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    """As tuned, with activation checkpointing: what uses the least memory."""
    return _trl(folder, rows, adapter, steps, _bf16(folder, adapter), _tuned(shape, checkpointing=True))


def _tuned(shape: str, checkpointing: bool) -> dict[str, Any]:
    return {
        "packing": True, "max_length": PACKED[shape], "gradient_checkpointing": checkpointing, "per_device_train_batch_size": 2,
    }  # fmt: skip


def _trl(folder: str, rows: Rows, adapter: str, steps: int, model: Any, options: dict[str, Any]) -> Measured:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"input_ids": ids, "completion_mask": [0] * p + [1] * (len(ids) - p)} for ids, p in rows])
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(**common_options(output, steps), completion_only_loss=True, **options)
        trainer = SFTTrainer(
            model, args=config, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=_peft(adapter),
            quantization_config=_four_bits() if adapter == "qlora" and isinstance(model, str) else None,
        )  # fmt: skip
        return run_trainer(trainer)


def trainer(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    """Plain transformers Trainer: padded batches of eight rows, bf16 weights, PEFT's LoRA, no activation checkpointing."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq

    data = [{"input_ids": ids, "labels": [-100] * p + ids[p:]} for ids, p in rows]
    collate = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder))
    return _trainer(folder, data, collate, adapter, steps, ROWS)


def trainer_packed(folder: str, rows: Rows, shape: str, adapter: str, steps: int) -> Measured:
    """Plain Trainer on rows laid end to end without boundaries, so that documents see each other: the fastest of the common tricks."""
    from transformers import default_data_collator

    n = PACKED[shape]
    ids = [i for row, _ in rows for i in row]
    labels = [label for row, p in rows for label in [-100] * p + row[p:]]
    data = [{"input_ids": ids[i : i + n], "labels": labels[i : i + n]} for i in range(0, len(ids) - n + 1, n)]
    return _trainer(folder, data, default_data_collator, adapter, steps, 2)


def _trainer(folder: str, data: list[dict], collate: Any, adapter: str, steps: int, batch: int) -> Measured:
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    model = _bf16(folder, adapter)
    if adapter != "full":
        model = get_peft_model(model, _peft(adapter), autocast_adapter_dtype=False)  # all in bf16, the fastest
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(**common_options(output, steps), per_device_train_batch_size=batch)
        return run_trainer(Trainer(model, args=arguments, train_dataset=data, data_collator=collate))


def run_trainer(trainer: Any, count: Callable[[dict], int] = lambda row: len(row["input_ids"])) -> Measured:
    """Train by a transformers Trainer; `count` says how many tokens a row has."""
    import torch
    from transformers import TrainerCallback

    tokens: list[int] = []
    seconds: list[float] = []
    now = [0.0]

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            now[0] = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - now[0])

    collate = trainer.data_collator

    def counting(features: list[dict]) -> Any:
        tokens.append(sum(count(f) for f in features))
        return collate(features)

    trainer.data_collator = counting
    trainer.add_callback(Clock())
    trainer.train()
    parts = trainer.args.gradient_accumulation_steps
    return [sum(tokens[i * parts : (i + 1) * parts]) for i in range(len(seconds))], seconds, None


def common_options(output: str, steps: int) -> dict[str, Any]:
    import torch

    return {
        "output_dir": output, "max_steps": steps, "save_strategy": "no", "report_to": "none", "logging_steps": 1,
        "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def _bf16(folder: str, adapter: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    how = {"quantization_config": _four_bits()} if adapter == "qlora" else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how)


def _four_bits() -> Any:
    """As the QLoRA paper has it: NF4 with double quantisation, computing in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    return BitsAndBytesConfig(load_in_4bit=True, **how)


def _peft(adapter: str) -> Any:
    from peft import LoraConfig

    if adapter == "full":
        return None
    return LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=adapter == "dora"
    )


CONTENDERS: dict[str, Callable[..., Measured]] = {
    "tunesmith": tunesmith,
    "tunesmith-checkpointing": tunesmith_checkpointing,
    "trl-defaults": trl_defaults,
    "trl-tuned": trl_tuned,
    "trl-checkpointing": trl_checkpointing,
    "trainer": trainer,
    "trainer-packed": trainer_packed,
}
CHECKPOINTING = ("trl-defaults", "trl-checkpointing")  # peers whose memory is that of activation checkpointing
