"""The pre-training text: reproducible, true in what it says, and never in the form of instructions."""

import json
import re
from itertools import islice
from random import Random

from tunesmith.starter import corpus
from tunesmith.starter.tasks import rows

DOCUMENTS = list(corpus.documents(5, 1500))


def test_same_seed_same_text_and_a_longer_run_begins_alike():
    assert list(islice(corpus.documents(5, 10**9), 50)) == DOCUMENTS[:50]
    assert next(corpus.documents(6, 1)) != DOCUMENTS[0]


def test_sums_are_right():
    found = [m for d in DOCUMENTS for m in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", d)]
    assert len(found) > 20
    for x, op, y, result in found:
        assert int(result) == (int(x) + int(y) if op == "+" else int(x) - int(y))


def test_lists_are_in_order():
    rng = Random(0)
    for _ in range(200):
        for line in corpus.order(rng).split("\n"):
            if match := re.search(r"From A to Z(?::| they are| we say) (.*)\.$", line):
                words = re.split(r",? ", match[1])
                assert words == sorted(words)
                assert len(words) >= 2


def test_notes_are_json_of_what_was_said():
    rng = Random(0)
    for _ in range(100):
        for found in re.findall(r"\{.*?\}", text := corpus.notes(rng)):
            for value in json.loads(found).values():
                assert str(value) in text.replace(found, "")


def test_described_has_as_many_words_as_asked():
    rng = Random(0)
    for n in (3, 4, 5, 6):
        for noun in ("dog", "box", "sheep"):
            assert len(corpus.described(n, noun, rng).split()) == n


def test_no_request_and_no_chat_mark_is_in_the_text():
    text = "\n".join(DOCUMENTS)
    assert "<|" not in text
    assert "assistant" not in text.lower()
    assert "tool_call" not in text
    for row in rows(5, 300, held=True):
        assert row["messages"][-2]["content"] not in text
