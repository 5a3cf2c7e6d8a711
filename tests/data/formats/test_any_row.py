"""Rows drawn at random, of all the formats' fields: each is read, or refused in a sentence."""

import random

from tunesmith.data.detect import all_formats, best_match, convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin

ORIGIN = Origin("data.jsonl", 7)
WORDS = (
    "x",
    "",
    "user",
    "assistant",
    "human",
    "gpt",
    "good",
    "A",
    "1",
    "[",
    "[1, 2]",
    "\n\nHuman: a\n\nAssistant: b",
    "tool_use",
    "tool_result",
    "tool_call",
    "USER: a\nASSISTANT: <functioncall> {",
)
KEYS = (
    "role", "content", "from", "value", "text", "rating", "edited", "regenerations", "tool_calls", "function", "name", "arguments",
        "type", "replies", "rank", "score", "train", "weight", "message_id", "parent_id", "label", "choices", "input", "output",
        "answers", "context", "question", "qas", "tool_use_id",
)  # fmt: skip


def anything(rng, depth=0):
    drawn = rng.random()
    if drawn < 0.4:
        return rng.choice(WORDS)
    if drawn < 0.5 or depth > 3:
        return rng.choice([0, 1, -1, 3.5, float("nan"), 10**400, True, None])
    if drawn < 0.75:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(KEYS): anything(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def test_no_row_however_wrong_ends_in_anything_but_a_sentence():
    rng = random.Random(1)
    fields = sorted({field for module in all_formats().values() for field in module.FIELDS})
    made, refused = 0, []
    for _ in range(15000):
        row = {}
        for field in rng.sample(fields, rng.randint(1, 4)):
            turns = [
                {"role": rng.choice(WORDS[2:4]), "content": "x", rng.choice(KEYS): anything(rng, 1)} for _ in range(2)
            ]
            row[field] = rng.choice([anything(rng), turns])
        found = best_match(row)
        name = found[0] if found else rng.choice(list(all_formats()))
        try:
            made += len(convert(row, ORIGIN, name))
        except RowError as error:
            refused.append(str(error))
    assert made > 300
    assert all(sentence.isprintable() and len(sentence) < 600 for sentence in refused)
