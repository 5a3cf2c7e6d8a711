"""Rebuild the starter from nothing: text -> tokenizer -> random weights -> pre-training -> checked files.

`python -m tunesmith.starter.build --output DIR` does all of it; recipes/starter says how long that takes and what comes out.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith.starter import FILES, checksums, corpus, tasks
from tunesmith.starter.tokenizer import TURN_END, train_tokenizer

SEED = 1
DOCUMENTS = 100_000  # about 22 million tokens

SHAPE = {
    "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
    "tie_word_embeddings": True, "max_position_embeddings": 512, "rope_theta": 10000.0,
}  # fmt: skip

RUN: dict[str, Any] = {
    "objective": {"name": "pretrain"},
    "adapter": {"name": "full"},
    "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01, "betas": [0.9, 0.98]},
    "train": {
        "epochs": 1,
        "tokens_per_step": 2048,
        "schedule": "wsd",
        "warmup": 100,
        "dtype": "bfloat16",
        "seed": SEED,
    },
}


def write_corpus(path: Path, seed: int = SEED, n: int = DOCUMENTS) -> Path:
    """Write n documents of plain text as JSONL ({"text": ...}) and return the path."""
    with path.open("w", encoding="utf-8") as f:
        for text in corpus.documents(seed, n):
            f.write(json.dumps({"text": text}) + "\n")
    return path


def make_tokenizer() -> Any:
    """Return the tokenizer trained on the generator's text: documents, requests, answers and calls."""
    rows = tasks.rows(SEED, 2000, held=False)
    texts = [m["content"] for r in rows for m in r["messages"] if m["content"]] + [tasks.answer_text(r) for r in rows]
    texts += [f"{t}({key}: {kind}): {what}" for t, (key, kind, what) in tasks.TOOLS.items()]
    return train_tokenizer([*corpus.documents(SEED, 6000), *texts])


def init_model(folder: Path, seed: int = SEED) -> Path:
    """Write the tokenizer and a Llama with random weights (fp32) into the folder and return it."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=-(-len(tokenizer) // 64) * 64, **SHAPE, **ids))
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=[turn_end, tokenizer.eos_token_id], max_new_tokens=64
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(output: Path, n: int = DOCUMENTS) -> Path:
    """Do it all under `output`, and return the folder of the finished model (config, bf16 weights, tokenizer, SHA256SUMS)."""
    import tunesmith

    output.mkdir(parents=True, exist_ok=True)
    write_corpus(output / "corpus.jsonl", n=n)
    init_model(output / "init")
    config = {**RUN, "model": str(output / "init"), "data": str(output / "corpus.jsonl"), "output": str(output / "run")}
    tunesmith.train(config)
    return package(output / "run" / "result", output / "model")


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
        "--documents", type=int, default=DOCUMENTS, metavar="N", help="documents to pre-train on (default: %(default)s)"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="write only the text and the random model, for `tunesmith train`"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.prepare:
        print(write_corpus(args.output / "corpus.jsonl", n=args.documents), init_model(args.output / "init"))
    else:
        print(build(args.output, args.documents))


if __name__ == "__main__":
    main()
