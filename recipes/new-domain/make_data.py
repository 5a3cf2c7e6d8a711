"""Write the data of this recipe: texts about an invented workshop, questions about its words, and general text to see what is forgotten.

    python recipes/new-domain/make_data.py --output runs/new-domain/data

words.txt       the invented words, one a line (the new vocabulary)
domain.jsonl    plain texts in which every word is explained and used
sft.jsonl       the starter's instructions and questions about three words in five
asked.jsonl     questions about the other words, which only domain.jsonl explains
rehearsal.jsonl the starter's own kind of text, to mix in against forgetting
general.jsonl   other such text, to measure what is forgotten
heldout.jsonl   the starter's held-out instructions
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from tunesmith import starter
from tunesmith.starter import corpus
from tunesmith.starter.tasks import row
from tunesmith.starter.world import NAMES, PLACES

ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sk",
    "t",
    "tr",
    "v",
    "z",
]
VOWELS = ["a", "e", "i", "o", "u", "ee", "oo"]
ENDS = ["b", "ck", "g", "l", "lm", "n", "nd", "nk", "p", "r", "rp", "sk", "t", "x", "zz"]
KINDS = [
    "a round thing", "a small thing", "a long thing", "a soft thing", "a thing of wood", "a big box", "a cup",
    "a room", "a person", "an animal",
]  # fmt: skip
USES = [
    "that cuts paper", "that holds water", "that rings at night", "that opens a door", "that carries bread", "that keeps milk cold",
    "that gives light", "that stops the wind", "that climbs trees", "that sings songs", "that sews coats", "that counts coins",
]  # fmt: skip


def words(rng: Random, n: int) -> dict[str, str]:
    """Return n invented words and what each is; no two are explained alike."""
    found: dict[str, str] = {}
    while len(found) < n:
        word = "".join(
            rng.choice(part) for part in (ONSETS, VOWELS, ["b", "d", "g", "l", "m", "n", "r", "v", "z"], VOWELS, ENDS)
        )
        meaning = f"{rng.choice(KINDS)} {rng.choice(USES)}"
        if meaning not in found.values():
            found[word] = meaning
    return found


def text(rng: Random, meanings: dict[str, str]) -> str:
    """Return a short text that explains and uses two or three words."""
    out = []
    for word in rng.sample(sorted(meanings), rng.randint(2, 3)):
        name, other = rng.sample(NAMES, 2)
        place = rng.choice(PLACES)
        out.append(
            rng.choice([
                f"A {word} is {meanings[word]}.",
                f"{name} knows that a {word} is {meanings[word]}.",
                f"{name} asked: What is a {word}? {other} said: A {word} is {meanings[word]}.",
            ])
        )  # fmt: skip
        out.append(
            rng.choice([
                f"{name} saw a {word} in the {place}.",
                f"There is a {word} in the {place}. It is {meanings[word]}.",
                f"{name} gave {other} a {word}, {meanings[word]}.",
            ])
        )  # fmt: skip
    return " ".join(out)


def question(rng: Random, word: str, meaning: str) -> dict[str, Any]:
    user = rng.choice([f"What is a {word}?", f"Explain what a {word} is."])
    answer = f"A {word} is {meaning}."
    return row("workshop", user, answer, {"rule": "same_words", "answers": [answer]}, [word])


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/new-domain/data"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = Random(f"tunesmith new domain {given.seed}")
    meanings = words(rng, 20)
    asked = rng.sample(sorted(meanings), 8)
    told = [word for word in meanings if word not in asked]
    files = starter.write_data(given.output / "starter", n_train=800)
    instructions = [json.loads(line) for line in files["train"].read_text().splitlines()]
    questions = [question(rng, word, meanings[word]) for word in told for _ in range(8)]
    rows = instructions + questions
    rng.shuffle(rows)
    write(given.output / "sft.jsonl", rows)
    write(given.output / "asked.jsonl", [question(rng, word, meanings[word]) for word in asked])
    write(given.output / "domain.jsonl", [{"text": text(rng, meanings)} for _ in range(400)])
    write(given.output / "rehearsal.jsonl", [{"text": t} for t in corpus.documents(78, 400)])
    write(given.output / "general.jsonl", [{"text": t} for t in corpus.documents(77, 200)])
    (given.output / "heldout.jsonl").write_bytes(files["heldout"].read_bytes())
    (given.output / "words.txt").write_text("".join(f"{word}\n" for word in sorted(meanings)))


if __name__ == "__main__":
    main()
