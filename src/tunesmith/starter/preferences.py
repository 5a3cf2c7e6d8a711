"""What the starter's people prefer, as data: answers in two voices to tune on, then pairs, verdicts and prompts by the judge's taste.

It is all written without a model. Pairs of a model's own answers are made of the prompts: `tunesmith sample MODEL --data prompts.jsonl
--reward rule --pairs`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tunesmith.evaluation.rules import check
from tunesmith.starter import world as w
from tunesmith.starter.data import instructions, write_rows
from tunesmith.starter.judge import SPOKEN, liked, warm
from tunesmith.starter.tasks import NUMBERS, Row, answer_text, rows

WARM = 0.3  # of the statements to tune on: so few that the likeliest answer stays plain, enough that samples show both voices
SLIPS = 0.15  # of the pairs with a voice: the rejected answer is wrong; in the others it is right and plain
OTHERS = 0.1  # of the rows of families without a voice make a pair too: a right answer over a wrong one

_WORD = re.compile(r"[A-Za-z]+|\d+")
_ALIKE = [*w.KINDS.values(), ["good", "bad"], list(NUMBERS.values()), [str(n) for n in range(1, 13)]]


def write_preferences(
    folder: Path, seed: int = 0, n_train: int = 4000, n_pairs: int = 800, n_heldout: int = 400
) -> dict[str, Path]:
    """Write the sets as JSONL into the folder (made if need be) and return their paths by name:

    tuning                        write_data's rows to tune on, with some statements in the warm voice (n_train)
    pairs, pairs_heldout          "prompt", "chosen", "rejected" (n_pairs; n_heldout)
    pairs_all                     pairs of all ten families alike, to learn answering from too (n_train)
    verdicts, verdicts_heldout    "prompt", "completion", "label" (twice n_pairs; n_heldout)
    prompts                       "prompt", to sample from (twice n_pairs)
    asked                         held-out rows of all ten families with the right answer (n_heldout)

    Every row has a "check", the rule of a right answer. In pairs, verdicts and prompts that is "right", and "check" the rule of an
    answer that is liked wholly: what the metric and the reward `rule` score by. The same seed gives the same bytes. No held-out
    item is in another file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets: dict[str, Iterable[Row]] = {
        "tuning": voices(instructions(seed, n_train), seed),
        "pairs": pairs(seed, n_pairs),
        "pairs_heldout": pairs(seed, n_heldout, held=True),
        "pairs_all": pairs(seed + 2, n_train, others=1.0),
        "verdicts": verdicts(seed, 2 * n_pairs),
        "verdicts_heldout": verdicts(seed, n_heldout, held=True),
        "prompts": [{"prompt": r["messages"][:-1], **_kept(r)} for r in _asked(seed, 2 * n_pairs)],
        "asked": rows(seed + 6, n_heldout, held=True),
    }
    return {name: write_rows(folder / f"{name}.jsonl", made) for name, made in sets.items()}


def voices(made: list[Row], seed: int) -> list[Row]:
    """Return the rows with the share WARM of the statements in the warm voice."""
    rng = Random(f"tunesmith starter voices {seed}")
    return [_in_warm_voice(r) if r["category"] in SPOKEN and rng.random() < WARM else r for r in made]


def pairs(seed: int, n: int, held: bool = False, others: float = OTHERS) -> list[Row]:
    """Return n pairs, the answer that the judge likes wholly over a plain one or a wrong one."""
    rng = Random(f"tunesmith starter pairs {seed} {held}")
    out: list[Row] = []
    for r in _asked(seed, n + n // 4, held, others):
        best = _in_warm_voice(r) if r["category"] in SPOKEN else r
        if r["category"] in SPOKEN and rng.random() >= SLIPS:
            worse: dict[str, Any] | None = r["messages"][-1]
        else:
            worse = slip(rng.choice([r, best]), rng)
        if worse is not None:
            out.append({"prompt": r["messages"][:-1], "chosen": best["messages"][-1:], "rejected": [worse], **_kept(r)})
    return out[:n]


def verdicts(seed: int, n: int, held: bool = False) -> list[Row]:
    """Return n verdicts: of as many pairs with prompts of their own the good or the bad answer, by the toss of a coin."""
    rng = Random(f"tunesmith starter verdicts by taste {seed} {held}")
    out = []
    for p in pairs(seed + 1, n, held):
        label = rng.random() < 0.5
        rest = {k: v for k, v in p.items() if k not in ("prompt", "chosen", "rejected")}
        out.append({"prompt": p["prompt"], "completion": p["chosen" if label else "rejected"], "label": label, **rest})
    return out


def slip(r: Row, rng: Random) -> dict[str, Any] | None:
    """Return the row's last turn with one thing wrong, as a model errs: a word taken for another of its kind (one of the question
    where there is one), or two words in each other's place; None where no such answer is wrong by the row's check."""
    right, asked = answer_text(r), r["messages"][-2]["content"]
    known = [(word, kind) for word in _WORD.findall(right) for kind in _ALIKE if word in kind]
    for _ in range(20 if known else 0):
        word, kind = rng.choice(known)
        others = [x for x in kind if x != word]
        other = rng.choice([x for x in others if x in _WORD.findall(asked)] or others)
        swap = {word: other, other: word}
        wrong = _WORD.sub(lambda m, swap=swap: swap.get(m[0], m[0]), right)  # type: ignore[misc]
        if check(wrong, r["check"]) < 1:
            return _said(r, wrong)
    return None


def _said(r: Row, text: str) -> dict[str, Any]:
    """Return the row's last turn with another text; of a call, with another call."""
    last = r["messages"][-1]
    if not last.get("tool_calls"):
        return {**last, "content": text}
    call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    return {**last, "tool_calls": [{**last["tool_calls"][0], "function": function}]}


def _in_warm_voice(r: Row) -> Row:
    return {**r, "messages": [*r["messages"][:-1], _said(r, warm(answer_text(r)))]}


def _asked(seed: int, n: int, held: bool = False, others: float = OTHERS) -> list[Row]:
    """Return n rows, of families without a voice only the share `others`."""
    rng = Random(f"tunesmith starter asked {seed} {held}")
    made = (r for r in rows(seed + 4, 3 * n, held) if r["category"] in SPOKEN or rng.random() < others)
    return [r for r, _ in zip(made, range(n), strict=False)]


def _kept(r: Row) -> Row:
    kept: Row = {k: r[k] for k in ("tools", "category", "items") if k in r}
    return {**kept, "check": liked(r["check"], r["category"]), "right": r["check"]}
