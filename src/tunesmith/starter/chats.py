"""Chats of several turns with a system message: a person played from the system's facts, facts remembered, lists worked on."""

import json
from random import Random
from typing import Any

from tunesmith.starter import world as w
from tunesmith.starter.tasks import NUMBERS, Row, moves
from tunesmith.starter.world import a, draw, listed

Turns = tuple[str, list[tuple[str, str]], list[str]]
"""What the system says, the (question, answer) turns, and the items."""


def persona(rng: Random, held: bool) -> Turns:
    """The model is someone of the small world and speaks of itself."""
    values = {"job": w.JOBS, "city": w.CITIES, "pet": w.ANIMALS, "food": w.FOODS}
    name, job = draw(rng, "persona", held, lambda r: (r.choice(w.NAMES), r.choice(w.JOBS)))
    city, pet, food = (rng.choice(values[k]) for k in ("city", "pet", "food"))
    system = f"You are {name}. You are {a(job)}. You live in {city}. You have {a(pet)}. You like {food}."
    turns = [
        ("What is your name?", f"My name is {name}."),
        ("What is your job?", f"I am {a(job)}."),
        ("Where do you live?", f"I live in {city}."),
        ("Do you have a pet?", f"Yes, I have {a(pet)}."),
        ("What do you like?", f"I like {food}."),
    ]
    return system, rng.sample(turns, rng.randint(2, 3)), [f"persona {name} {job}"]


def memory(rng: Random, held: bool) -> Turns:
    """The user tells facts, then asks about them."""
    facts, items = moves(rng, held, 2)
    told = [(f"{p} took the {t} to the {x}.", "Thank you, I will remember that.") for p, t, x in facts]
    person, thing, place = rng.choice(facts)
    asked = [
        (f"Where is the {thing}?", f"The {thing} is in the {place}."),
        (f"Who took the {thing}?", f"{person} took the {thing}."),
    ]
    return "You remember what people tell you.", told + rng.sample(asked, rng.randint(1, 2)), items


def lists(rng: Random, held: bool) -> Turns:
    """A list is counted, sorted and taken apart."""
    words = list(draw(rng, "list", held, lambda r: tuple(r.sample(w.SORTABLE, r.randint(3, 4)))))
    first = (
        f"My list is {listed(words)}.",
        f"Your list has {NUMBERS[len(words)]} words.",
    )
    more = [  # asked in this order: once sorted, the first word would be another one
        ("Which word is first?", f"The first word is {words[0]}."),
        ("Which word is last?", f"The last word is {words[-1]}."),
        ("Sort it.", f"From A to Z: {', '.join(sorted(words))}."),
    ]
    asked = [more[i] for i in sorted(rng.sample(range(3), rng.randint(1, 2)))]
    return "You help people with their lists.", [first, *asked], [f"list {' '.join(words)}"]


def chat(rng: Random, held: bool) -> Row:
    """Return one chat; its check scores the last answer."""
    maker = rng.choice([persona, memory, lists])
    system, turns, items = maker(rng, held)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    check = {"rule": "same_words", "answers": [turns[-1][1]]}
    return {"messages": messages, "category": "chat", "check": check, "items": items}


def chats(seed: int, n: int, held: bool) -> list[Row]:
    """Return n chats, none twice."""
    rng = Random(f"tunesmith starter chats {seed} {held}")
    out: dict[str, Row] = {}
    while len(out) < n:
        made = chat(rng, held)
        out.setdefault(json.dumps(made["messages"]), made)
    return list(out.values())
