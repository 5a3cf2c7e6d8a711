"""The last text of pre-training: people in the small world who ask each other, so that looking back and ordering are practised.

What they ask is drawn like the instruction rows for tuning, held-out items left out, and told as talk in a story: no chat mark, no
roles, no tools. A third is the rest of the world, so that nothing told there is forgotten.
"""

from collections.abc import Iterator
from random import Random

from tunesmith.starter import corpus, tasks
from tunesmith.starter import world as w

SHARES = {
    "passage": 22, "sort": 18, "sums": 18, "pick": 14, "format": 14, "extract": 5, "polite": 5, "sentiment": 4, "define": 8,
}  # fmt: skip
SAYS = [("asks", "says"), ("asked", "said"), ("wants to know", "answers")]


def talk(rng: Random) -> str:
    """Return one to four questions of one kind with their answers, as two people speak."""
    family = tasks.FAMILIES[rng.choices(list(SHARES), list(SHARES.values()))[0]]
    one, other = rng.sample(w.NAMES, 2)
    asks, says = rng.choice(SAYS)
    lines = []
    for _ in range(rng.randint(1, 4)):
        made = family(rng, False)
        lines.append(f"{one} {asks}: {made['messages'][0]['content']}\n{other} {says}: {tasks.answer_text(made)}")
    return "\n".join(lines)


def documents(seed: int, n: int) -> Iterator[str]:
    """Yield n documents: two thirds talk, the others sums and the small world."""
    rng = Random(f"tunesmith starter practice {seed}")
    for _ in range(n):
        kind = rng.random()
        if kind < 0.67:
            yield talk(rng)
        elif kind < 0.77:
            yield corpus.sums(rng)
        elif kind < 0.82:
            yield corpus.meanings(rng)
        else:
            yield corpus.document(rng)
