"""SFT throughput beside TRL, one run: real (unpadded) tokens per second of stepping, contenders interleaved, medians.

    python benchmarks/sft.py [--shape 135m|starter] [--adapter lora|full] [--rounds 3] [--steps 8] [--only NAME ...]

Every contender trains on the same token rows (lengths drawn like Alpaca's, answers scored) of the same random-weight model, each in
a process of its own that reports the seconds of every optimizer step; the first two steps are left out. The floor is the matrix
products the step cannot do without, at the bf16 rate measured on the model's own shapes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np

SHAPES = {
    "135m": {  # SmolLM2-135M's shape
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "starter": {
        "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
CONTENDERS = ("tunesmith", "trl-defaults", "trl-tuned")
ROWS = 8  # rows per optimizer step: TRL's default batch


def draw_rows(n: int, vocabulary: int) -> list[tuple[list[int], int]]:
    """Return (ids, prompt length) of n rows; prompts of 60 tokens and answers of 80 by the median, both log-normal."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(np.log(60), 0.5, n), 12, 400).astype(int)
    answers = np.clip(rng.lognormal(np.log(80), 0.8, n), 4, 600).astype(int)
    return [(rng.integers(3, vocabulary, p + a).tolist(), int(p)) for p, a in zip(prompts, answers, strict=True)]


def run_tunesmith(
    model_dir: str, rows: list[tuple[list[int], int]], adapter: str, steps: int
) -> tuple[list[int], list[float]]:
    import torch

    from tunesmith.data.records import Examples
    from tunesmith.model.loading import ModelSource, load_model
    from tunesmith.model.lora import fuse
    from tunesmith.model.policy import make_policy
    from tunesmith.registry import load
    from tunesmith.run import Run
    from tunesmith.training.loop import Loop, Plan
    from tunesmith.training.objectives import sft
    from tunesmith.training.optimizers import adamw

    offsets = np.cumsum([0] + [len(ids) for ids, _ in rows])
    scored = np.concatenate([np.arange(len(ids)) >= p for ids, p in rows])
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int32)
    examples = Examples(ids, scored, offsets, np.arange(len(rows)), [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load("model.adapters", adapter).attach(load_model(ModelSource(model_dir), "bfloat16"))
    fuse(model)
    policy, _ = make_policy(model.to(device))
    plan = Plan(
        steps=steps, tokens_per_step=None, batch_size=ROWS, microbatch_tokens=4096, learning_rate=1e-4, schedule="linear", warmup=0,
        clip_norm=1.0, seed=0, evaluate_every=10**9, checkpoint_every=10**9, keep_last=1, early_stopping=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            Run(Path(folder)), policy, sft.loss, examples, lambda _: np.arange(len(rows)), plan,
            lambda masters: adamw(masters, learning_rate=1e-4), dict, "",
        )  # fmt: skip
        loop.save = lambda: None  # type: ignore[method-assign]  # checkpoints are not what is measured
        progress = loop.train()
    return progress.step_tokens, progress.step_seconds


def run_trl(
    model_dir: str, rows: list[tuple[list[int], int]], adapter: str, steps: int, tuned: bool
) -> tuple[list[int], list[float]]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"input_ids": ids, "completion_mask": [0] * p + [1] * (len(ids) - p)} for ids, p in rows])
    options = {"packing": True, "gradient_checkpointing": False, "per_device_train_batch_size": 2} if tuned else {}
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

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=steps, save_strategy="no", report_to="none", logging_steps=1, disable_tqdm=True,
            completion_only_loss=True, use_cpu=not torch.cuda.is_available(), **options,
        )  # fmt: skip
        # tuned: weights in bf16, as one would load them by hand; defaults: the path, TRL's own loading
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16) if tuned else model_dir
        trainer = SFTTrainer(
            model,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            if adapter == "lora"
            else None,
            callbacks=[Clock()],
        )
        collate = trainer.data_collator

        def counting(features):
            tokens.append(sum(len(f["input_ids"]) for f in features))
            return collate(features)

        trainer.data_collator = counting
        trainer.train()
    return tokens[: len(seconds)], seconds


def child(name: str, model_dir: str, shape: str, adapter: str, steps: int) -> None:
    import resource

    rows = draw_rows(512, SHAPES[shape]["vocab_size"])
    if name == "tunesmith":
        tokens, seconds = run_tunesmith(model_dir, rows, adapter, steps)
    else:
        tokens, seconds = run_trl(model_dir, rows, adapter, steps, tuned=name == "trl-tuned")
    rate = sum(tokens[2:]) / sum(seconds[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"rate": rate, "peak": peak, "steps": len(seconds), "tokens": sum(tokens[2:])}))


def make_model(folder: str, shape: str) -> None:
    """Save a random model of the shape with the starter's tokenizer (its ids are all that is used of it)."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunesmith.model.loading import STARTER

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)


def gemm_rate(shape: str) -> float:
    """Return the machine's bf16 rate on the model's own largest layer, in operations per second (median of 7)."""
    import torch

    s = SHAPES[shape]
    x, w = (
        torch.randn(1536, s["hidden_size"]).bfloat16(),
        torch.randn(s["intermediate_size"], s["hidden_size"]).bfloat16(),
    )
    if torch.cuda.is_available():
        x, w = x.cuda(), w.cuda()
    times = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(20):
            x @ w.t()
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 20 * 2 * x.shape[0] * w.numel() / statistics.median(times[2:])


def needed_flops(shape: str, adapter: str) -> float:
    """Operations per token a step cannot do without: full 6N + 6 s H V + 6 n d L, LoRA 4N + 4 s H V + 6 n d L + 6 N_lora."""
    s, rows = SHAPES[shape], draw_rows(512, SHAPES[shape]["vocab_size"])
    h, kv = s["hidden_size"], s["hidden_size"] // s["num_attention_heads"] * s["num_key_value_heads"]
    shapes = [(h, h), (h, kv), (h, kv), (h, h)] + [(h, s["intermediate_size"])] * 3
    layers = s["num_hidden_layers"]
    n = layers * sum(a * b for a, b in shapes)
    total = sum(len(ids) for ids, _ in rows)
    share = sum(len(ids) - p for ids, p in rows) / total
    length = (
        sum(len(ids) ** 2 for ids, _ in rows) / total
    )  # the mean segment as a token sees it; causal: half of it, twice 6
    k, lora = (6, 0.0) if adapter == "full" else (4, 6.0 * 16 * layers * sum(a + b for a, b in shapes))
    return k * n + k * share * h * s["vocab_size"] + 6 * layers * h * length + lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], args.shape, args.adapter, args.steps)
        return
    results: dict[str, list[dict]] = {name: [] for name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, args.shape)
        for number in range(args.rounds):
            for name in args.only:
                command = [
                    sys.executable,
                    __file__,
                    "--child",
                    name,
                    folder,
                    "--shape",
                    args.shape,
                    "--adapter",
                    args.adapter,
                    "--steps",
                    str(args.steps),
                ]
                environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "TRANSFORMERS_VERBOSITY": "error"}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
                if line is None:
                    sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
                results[name].append(json.loads(line[7:]))
                print(f"round {number + 1}  {name:<13} {results[name][-1]['rate']:8.1f} tok/s", file=sys.stderr)
    print(table(args, results))


def table(args: argparse.Namespace, results: dict[str, list[dict]]) -> str:
    import torch

    rates = {name: statistics.median(r["rate"] for r in runs) for name, runs in results.items()}
    limit = gemm_rate(args.shape) / needed_flops(args.shape, args.adapter)
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    )
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "trl", "peft"))
    lines = [
        f"{args.shape} {args.adapter} SFT, bf16, {date.today()}, {device}, {versions}",
        f"limit {limit:.0f} tok/s ({needed_flops(args.shape, args.adapter) / 1e9:.2f} GFLOP per token at the bf16 rate of its own shapes)",
        "",
        "| contender | real tokens/s (median, min to max) | tunesmith is | share of the limit | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        every = [r["rate"] for r in runs]
        ratio = f"{rates['tunesmith'] / rates[name]:.2f}x" if "tunesmith" in rates else ""
        peak = statistics.median(r["peak"] for r in runs) / 2**30
        lines.append(
            f"| {name} | {rates[name]:.0f} ({min(every):.0f} to {max(every):.0f}) | {ratio} | {rates[name] / limit:.0%} | {peak:.1f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
