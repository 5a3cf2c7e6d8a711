"""Rows for the benchmarks of data: Alpaca's fields and lengths, made-up words of Zipf's frequencies, duplicates planted."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def sentences(rng: np.random.Generator, n: int = 100_000) -> np.ndarray:
    """Return n sentences of 4 to 16 words out of 20,000 made-up ones, rank r with frequency 1 / (r + 2.7) (Zipf-Mandelbrot)."""
    syllables = np.array(
        ["ba", "den", "ki", "lor", "mu", "na", "pel", "ri", "sto", "ta", "ven", "zu", "th", "er", "ing", "an"]
    )
    words = np.unique(["".join(rng.choice(syllables, k)) for k in rng.integers(1, 5, 40_000)])
    words = rng.permutation(words)[:20_000]
    words = words[np.argsort(np.char.str_len(words) + rng.normal(0, 2, len(words)))]  # frequent words are short
    weights = np.cumsum(1 / (np.arange(len(words)) + 2.7))
    lengths = rng.integers(4, 17, n)
    drawn = words[np.searchsorted(weights, rng.random(lengths.sum()) * weights[-1])].tolist()
    ends = np.cumsum(lengths).tolist()
    made = [" ".join(drawn[e - k : e]) for e, k in zip(ends, lengths.tolist(), strict=True)]
    return np.array([f"{s[:1].upper()}{s[1:]}." for s in made], dtype=object)


def generated(n: int, seed: int = 0, planted: float = 0.04) -> Iterator[dict[str, str]]:
    """Yield n Alpaca rows of about 420 characters; a share `planted` repeats an earlier row, and one as large nearly does."""
    rng = np.random.default_rng(seed)
    pool = sentences(rng)
    kept: list[dict[str, str]] = []
    for start in range(0, n, 10_000):
        count = min(10_000, n - start)
        answers = np.clip(rng.lognormal(np.log(3.6), 0.7, count), 1, 40).astype(int)
        picked = pool[rng.integers(0, len(pool), int(answers.sum()) + 2 * count)].tolist()
        kinds, at = rng.random(count), 0
        for i, k in enumerate(answers.tolist()):
            row = {
                "instruction": picked[at],
                "input": picked[at + 1] if i % 3 == 0 else "",
                "output": " ".join(picked[at + 2 : at + 2 + k]),
            }
            at += 2 + k
            if kept and kinds[i] < 2 * planted:
                row = dict(kept[int(rng.integers(len(kept)))])
                if kinds[i] < planted:
                    row["output"] = edited(row["output"], rng)
            elif k > 2 and len(kept) < 20_000:
                kept.append(row)
            yield row


def edited(text: str, rng: np.random.Generator) -> str:
    """Return the text with one word in forty, and at least one, replaced."""
    words = text.split(" ")
    for place in rng.integers(0, len(words), max(1, len(words) // 40)):
        words[place] = "other"
    return " ".join(words)


def write_rows(file: Path, rows: Iterator[dict[str, str]], most: float = float("inf")) -> int:
    """Write rows as JSONL up to `most` bytes; return how many."""
    count = size = 0
    with file.open("w", encoding="utf-8") as f:
        for row in rows:
            size += f.write(json.dumps(row) + "\n")
            count += 1
            if size >= most:
                break
    return count
