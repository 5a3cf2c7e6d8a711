"""Preference pairs with lengths as real ones have, and the floor no implementation can go below."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shapes import SHAPES, layer_products

REAL = Path(__file__).resolve().parents[2] / "shared/data/preference/llamafactory/dpo_en_demo.json"
CHARACTERS = 4.6  # of English in a token of a vocabulary of 50k: GPT-2's cuts this file so
TURN, END = 5, 1  # tokens that ChatML puts around a turn and behind an answer
MOST = 1024  # tokens of a prompt with an answer: TRL's default


class Pair(NamedTuple):
    """Token ids of a prompt and of two answers to it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """The tokens of both sequences, the prompt in each: what throughput counts, however often it is run."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def draw_pairs(n: int, shape: str, times: float | None = None) -> list[Pair]:
    """Return n pairs of random tokens; lengths of llamafactory's dpo_en where the file is there, else drawn like them.

    times: prompts have so many times the tokens of their answers, on average of the two, and fill no more than the model's context.
    """
    rng = np.random.default_rng(0)
    most = MOST if SHAPES[shape]["vocab_size"] > 10_000 else MOST // 8  # small models are to be quick
    lengths = _real(most) if REAL.is_file() else _drawn(rng, most)
    lengths = lengths[rng.permutation(len(lengths))[np.arange(n) % len(lengths)]]
    if times is not None:
        lengths[:, 0] = np.round(times * (lengths[:, 1] + lengths[:, 2]) / 2)
    vocabulary = SHAPES[shape]["vocab_size"]
    return [Pair(*(rng.integers(3, vocabulary, k).tolist() for k in row)) for row in lengths.tolist()]


def _real(most: int) -> np.ndarray:
    """Return (prompt, chosen, rejected) tokens of the file's rows, (rows,3); ends beyond `most` are cut off."""
    found = []
    for row in json.loads(REAL.read_text()):
        prompt = sum(_tokens(m["value"]) + TURN for m in row["conversations"]) + TURN
        found.append((prompt, *(_tokens(row[side]["value"]) + END for side in ("chosen", "rejected"))))
    return _cut(np.array(found) * most // MOST, most)


def _tokens(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS))


def _drawn(rng: np.random.Generator, most: int) -> np.ndarray:
    """As `_real`: log-normal prompts with a median of 220 tokens, answers of 310 by the mean, alike within a pair."""
    prompt = rng.lognormal(np.log(220), 1.15, 1000)
    level = rng.normal(310, 150, 1000)
    answers = [np.clip(level + rng.normal(0, 90, 1000), 4, None) for _ in range(2)]
    return _cut(np.stack([prompt, *answers], 1).astype(np.int64) * most // MOST, most)


def _cut(lengths: np.ndarray, most: int) -> np.ndarray:
    """Rows whose prompt alone is too long are left out."""
    lengths = np.maximum(lengths[lengths[:, 0] < most - 1], 1)
    lengths[:, 1:] = np.minimum(lengths[:, 1:], most - lengths[:, :1])
    return lengths


def needed_flops(shape: str, pairs: list[Pair], head: bool, shared: bool = True) -> float:
    """Operations per token of the pairs (Pair.tokens) that a step of LoRA, r = 16, cannot do without.

    4 N and 6 N_lora for every token that runs, N weights of the layers: prompts once where they are `shared`; 4 H V for every answer's
    token where log-probs are asked (`head`); 12 n d for every pair of a token and one it sees, n layers, d width of the queries.
    """
    s = SHAPES[shape]
    layers, products, h = s["num_hidden_layers"], layer_products(shape), s["hidden_size"]
    a_token = 4 * layers * sum(a * b for a, b in products) + 6 * 16 * layers * sum(a + b for a, b in products)
    total = 0.0
    for prompt, *answers in (tuple(map(len, pair)) for pair in pairs):
        prompts = 1 if shared else 2
        tokens = prompts * prompt + sum(answers)
        seen = prompts * prompt**2 / 2 + sum(a * prompt + a**2 / 2 for a in answers)
        total += a_token * tokens + 12 * layers * h * seen
        total += 4 * h * s["vocab_size"] * sum(answers) if head else 0
    return total / sum(pair.tokens for pair in pairs)
