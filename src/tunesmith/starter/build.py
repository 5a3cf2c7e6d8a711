"""Rebuild the starter from nothing: text -> tokenizer -> first weights -> three stages of pre-training -> checked files.

`python -m tunesmith.starter.build --output DIR` does all of it; recipes/starter says how long that takes and what comes out.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.starter import FILES, MODEL, checksums, corpus, practice, tasks
from tunesmith.starter.tokenizer import TURN_END, train_tokenizer

SEED = 1
REPETITIONS = 24_000  # documents of the first stage, about 0.6 million tokens
DOCUMENTS = 125_000  # of the second, about 7.2 million
PRACTICE = 115_000  # of the third, about 8 million

SHAPE = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 6,
    "tie_word_embeddings": True, "max_position_embeddings": 512, "rope_theta": 10000.0, "initializer_range": 0.06,
}  # fmt: skip


def stages(folder: Path) -> list[dict[str, Any]]:
    """Return the run files of the three stages under `folder`: copying first, then the world, then practice."""
    common = {
        "objective": {"name": "pretrain"},
        "adapter": {"name": "full"},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01, "betas": [0.9, 0.98]},
        "validation": {"fraction": 0.005},
    }
    train = {"epochs": 1, "schedule": "wsd", "warmup": 50, "dtype": "bfloat16", "seed": SEED}
    copying = {
        "model": str(folder / "init"), "data": str(folder / "repetitions.jsonl"), "output": str(folder / "copying"),
        "train": train | {"tokens_per_step": 1024, "schedule": "constant"},
    }  # fmt: skip
    world = {
        "model": str(folder / "copying"), "data": str(folder / "documents.jsonl"), "output": str(folder / "world"),
        "train": train | {"tokens_per_step": 1536, "warmup": 300},
    }  # fmt: skip
    practice = {
        "model": str(folder / "world"), "data": str(folder / "practice.jsonl"), "output": str(folder / "practice"),
        "train": train | {"tokens_per_step": 1536, "warmup": 100},
    }  # fmt: skip
    return [common | copying, common | world, common | practice]


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """Write plain text as JSONL ({"text": ...}) and return the path."""
    with path.open("w", encoding="utf-8") as f:
        for text in texts:
            f.write(json.dumps({"text": text}) + "\n")
    return path


def make_tokenizer() -> Any:
    """Return a tokenizer trained on the generator's text (documents, requests, answers, calls): for a world whose words changed.

    The one that ships was made so from an earlier set of requests; weights belong to the tokenizer they were trained with.
    """
    rows = tasks.rows(SEED, 2000, held=False)
    texts = [m["content"] for r in rows for m in r["messages"] if m["content"]] + [tasks.answer_text(r) for r in rows]
    texts += [f"{t}({key}: {kind}): {what}" for t, (key, kind, what) in tasks.TOOLS.items()]
    return train_tokenizer([*corpus.documents(SEED, 6000), *texts])


def init_model(folder: Path, tokenizer: Any = None, seed: int = SEED) -> Path:
    """Write the tokenizer (default: the one that ships) and the first weights (fp32) of the Llama into the folder and return it.

    The weights are random, with keys equal to queries and outputs equal to the values' transpose, so that attention begins by
    looking for like tokens and passing them on: mimetic initialisation (Trockman & Kolter, 2023, arXiv 2305.09828).
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=-(-len(tokenizer) // 64) * 64, **SHAPE, **ids))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=[turn_end, tokenizer.eos_token_id], max_new_tokens=64
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare(folder: Path, tokenizer: Any = None) -> None:
    """Write under `folder` what the stages read: repetitions.jsonl, documents.jsonl, practice.jsonl and init/."""
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder / "repetitions.jsonl", corpus.repetitions(SEED, REPETITIONS))
    write_texts(folder / "documents.jsonl", corpus.documents(SEED, DOCUMENTS))
    write_texts(folder / "practice.jsonl", practice.documents(SEED, PRACTICE))
    init_model(folder / "init", tokenizer)


def build(folder: Path, tokenizer: Any = None) -> Path:
    """Do it all under `folder`, and return the folder of the finished model (config, bf16 weights, tokenizer, SHA256SUMS)."""
    import tunesmith

    prepare(folder, tokenizer)
    for stage in stages(folder):
        tunesmith.train(stage)
    return package(folder / "practice" / "result", folder / "model")


def package(result: Path, folder: Path) -> Path:
    """Copy the files that ship from a run's result, write their SHA256SUMS beside them, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(result / name, folder / name)
    (folder / "SHA256SUMS").write_text(checksums(folder), encoding="ascii")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tunesmith.starter.build", description=__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder for everything")
    parser.add_argument(
        "--prepare", action="store_true", help="write only the text and the first weights, for `tunesmith train`"
    )
    parser.add_argument(
        "--package", action="store_true", help="only copy the finished run's model to DIR/model, with its checksums"
    )
    parser.add_argument(
        "--new-tokenizer", action="store_true", help="train the tokenizer anew too, for a generator with other words"
    )
    args = parser.parse_args()
    tokenizer = make_tokenizer() if args.new_tokenizer else None
    if args.prepare:
        prepare(args.output, tokenizer)
    elif args.package:
        print(package(args.output / "practice" / "result", args.output / "model"))
    else:
        print(build(args.output, tokenizer))


if __name__ == "__main__":
    main()
