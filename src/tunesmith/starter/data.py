"""The generator's data files for every stage: instructions, chats, preferences, verdicts, prompts with a programmatic reward."""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tunesmith.evaluation.rules import check
from tunesmith.starter.chats import chats
from tunesmith.starter.tasks import Row, answer_text, rows

CHATS = 10  # one row in so many of the instructions is a chat of several turns


def write_data(folder: Path, seed: int = 0, n_train: int = 4000, n_heldout: int = 200) -> dict[str, Path]:
    """Write the data sets as JSONL into the folder (made if need be) and return their paths by name:

    train, heldout       rows of chat messages with "category", "check" and "items"; one training row in ten is a chat
    chats                chats of several turns with system messages (n_train // 4)
    preferences          "prompt", "chosen", "rejected" (n_train // 3, at least 1,000)
    verdicts             "prompt", "completion", "label": good or bad (as many)
    rewards              "prompt" and its "check" (n_train // 4)

    The same seed gives the same bytes. n_heldout is for the held-out instructions alone, the families in turn; no item of
    theirs is in any other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = preferences(seed, max(1000, n_train // 3))
    sets: dict[str, Iterable[Row]] = {
        "train": instructions(seed, n_train),
        "heldout": rows(seed, n_heldout, held=True),
        "chats": chats(seed + 1, max(1, n_train // 4), held=False),
        "preferences": pairs,
        "verdicts": verdicts(seed, pairs),
        "rewards": rewards(seed, max(1, n_train // 4)),
    }
    return {name: write_rows(folder / f"{name}.jsonl", made) for name, made in sets.items()}


def instructions(seed: int, n: int) -> list[Row]:
    """Return n rows for tuning, one in ten a chat."""
    talk = n // CHATS
    made = rows(seed, n - talk, held=False) + chats(seed, talk, held=False)
    Random(f"tunesmith starter order {seed}").shuffle(made)
    return made


def preferences(seed: int, n: int) -> list[Row]:
    """Return n pairs; the chosen answer obeys the row's check wholly and the rejected one does not, though it is fluent."""
    rng = Random(f"tunesmith starter preferences {seed}")
    made = rows(seed + 2, n + n // 2, held=False)
    by_family: dict[str, list[Row]] = {}
    for r in made:
        by_family.setdefault(r["category"], []).append(r)
    out: list[Row] = []
    for r in made:
        wrong = _wrong_answer(r, rng, by_family[r["category"]])
        if wrong is not None and len(out) < n:
            pair = {"prompt": r["messages"][:-1], "chosen": r["messages"][-1:], "rejected": [wrong]}
            out.append(pair | _kept(r))
    return out


def _wrong_answer(r: Row, rng: Random, family: list[Row]) -> dict[str, Any] | None:
    """An answer that fails the row's check: another row's, the question given back, or the right one with talk around it."""
    right = answer_text(r)
    other: list[Row] = [rng.choice(family)["messages"][-1] for _ in range(3)]
    plain = [r["messages"][-2]["content"], f"{right} I like that.", "I do not know."]
    tries: list[Row] = [*other, *({"role": "assistant", "content": t} for t in rng.sample(plain, 3))]
    for wrong in tries if rng.random() < 0.7 else tries[3:]:
        if check(answer_text({"messages": [wrong]}), r["check"]) < 1:
            return wrong
    return None


def verdicts(seed: int, pairs: list[Row]) -> list[Row]:
    """Return one verdict per pair: its good or its bad answer, by the toss of a coin."""
    rng = Random(f"tunesmith starter verdicts {seed}")
    out = []
    for p in pairs:
        label = rng.random() < 0.5
        kept = {k: v for k, v in p.items() if k not in ("prompt", "chosen", "rejected")}
        out.append({"prompt": p["prompt"], "completion": p["chosen" if label else "rejected"], "label": label} | kept)
    return out


def rewards(seed: int, n: int) -> list[Row]:
    """Return n prompts whose answers `evaluation.rules.check` rewards."""
    return [{"prompt": r["messages"][:-1], "check": r["check"]} | _kept(r) for r in rows(seed + 3, n, held=False)]


def _kept(r: Row) -> Row:
    return {k: r[k] for k in ("tools", "category", "items") if k in r}


def write_rows(path: Path, made: Iterable[Row]) -> Path:
    """Write the rows as JSONL and return the path."""
    with path.open("w", encoding="utf-8") as f:
        for r in made:
            f.write(json.dumps(r, ensure_ascii=False) + "\n")
    return path
