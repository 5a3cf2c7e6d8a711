"""The instruction families: short requests of the small world, each with its answer and the rule that scores an answer.

A family is a function (rng, held) -> row. Its items (facts, sums, word lists, ...) fall by their hash on one side of the split
(`world.held_out`); with held=True every item of the row is a held-out one, with False none is, so that the two sides share none.
A row is {"messages", "category", "check", "items"}, and "tools" where a tool is to be called.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tunesmith.starter import world as w
from tunesmith.starter.corpus import described
from tunesmith.starter.world import a, draw, held_out, listed, plural

Row = dict[str, Any]
Family = Callable[[Random, bool], Row]

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

# name -> (key, its type, what it does)
TOOLS = {
    "weather": ("city", "string", "the weather in a city"),
    "timer": ("minutes", "integer", "rings after some minutes"),
    "song": ("title", "string", "plays a song"),
    "phone": ("person", "string", "calls a person"),
    "light": ("room", "string", "makes light in a room"),
}


def row(category: str, user: str, answer: str, check: dict[str, Any], items: list[str]) -> Row:
    """Return a row of one question and its answer."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "category": category, "check": check, "items": items}


def moves(rng: Random, held: bool, n: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return n facts (person, thing, place), all different, and their items: no fact is ever told on the other side."""
    facts: list[tuple[str, str, str]] = []
    while len(facts) < n:
        thing, place = draw(rng, "where", held, lambda r: (r.choice(w.THINGS), r.choice(w.PLACES)))
        person, _ = draw(rng, "who", held, lambda r, t=thing: (r.choice(w.NAMES), t))  # type: ignore[misc]
        if not any(person == p or thing == t or place == x for p, t, x in facts):
            facts.append((person, thing, place))
    return facts, [f"where {t} {x}" for _, t, x in facts] + [f"who {p} {t}" for p, t, _ in facts]


def passage(rng: Random, held: bool) -> Row:
    """A place or a person, asked about a passage of two or three sentences."""
    facts, items = moves(rng, held, rng.randint(2, 3))
    told: list[str] = []
    answers: list[tuple[str, str]] = []
    for person, thing, place in facts:
        if rng.random() < 0.6:
            told.append(f"The {thing} is in the {place}.")
            answers.append((f"Where is the {thing}?", told[-1]))
        else:
            told.append(f"The {thing} is with {person}.")
            answers.append((f"Who has the {thing}?", told[-1]))
    question, answer = rng.choice(answers)
    return row("passage", f"{' '.join(told)} {question}", answer, {"rule": "same_words", "answers": [answer]}, items)


def extract(rng: Random, held: bool) -> Row:
    """The facts about a person as JSON."""
    values = {"job": w.JOBS, "city": w.CITIES, "pet": w.ANIMALS, "food": w.FOODS}
    said = {"job": "is {}", "city": "lives in {}", "pet": "has {}", "food": "likes {}"}
    keys = rng.sample(list(values), 2)
    name, first = draw(rng, "extract", held, lambda r: (r.choice(w.NAMES), r.choice(values[keys[0]])))
    second = rng.choice(values[keys[1]])
    while held_out("extract", (name, second)) != held:
        second = rng.choice(values[keys[1]])
        if rng.random() < 0.02:  # this name may have no such value on this side
            return extract(rng, held)
    got = {"name": name, keys[0]: first, keys[1]: second}
    told = " ".join(f"{name} {said[k].format(a(got[k]) if k in ('job', 'pet') else got[k])}." for k in keys)
    user = rng.choice(["Write as JSON with {}: {}", "Give me JSON with {}: {}"]).format(listed(["name", *keys]), told)
    items = [f"extract {name} {got[k]}" for k in keys]
    return row("extract", user, json.dumps(got), {"rule": "json_equal", "value": got}, items)


def sentiment(rng: Random, held: bool) -> Row:
    """A good or a bad feeling."""
    subjects, good, bad = rng.choice(w.OPINIONS)
    happy = rng.random() < 0.5
    one = draw(rng, "sentiment", held, lambda r: (r.choice(subjects), r.choice(good if happy else bad)))
    clauses = [one]
    while rng.random() < 0.6 and len(clauses) < 2:
        two = draw(rng, "sentiment", held, lambda r: (r.choice(subjects), r.choice(good if happy else bad)))
        if two[0] != one[0] and two[1] != one[1]:
            clauses.append(two)
    told = " and ".join(f"the {s} was {o}" for s, o in clauses)
    ask = rng.choice(["Is this good or bad? {}.", "Good or bad? {}.", "{}. Is the feeling good or bad?"])
    answer = f"The feeling is {'good' if happy else 'bad'}."
    user = ask.format(told[0].upper() + told[1:])
    return row(
        "sentiment",
        user,
        answer,
        {"rule": "same_words", "answers": [answer]},
        [f"sentiment {s} {o}" for s, o in clauses],
    )


def polite(rng: Random, held: bool) -> Row:
    """An order, asked politely."""
    pairs = [(v, t) for v, ts in w.ACTIONS.items() for t in ts]
    verb, thing = draw(rng, "polite", held, lambda r: r.choice(pairs))
    order = f"{verb.capitalize()} the {thing}."
    user = rng.choice(["Say it politely: {}", "Make this polite: {}", "Ask nicely: {}"]).format(order)
    answer = f"Could you please {verb} the {thing}?"
    return row("polite", user, answer, {"rule": "same_words", "answers": [answer]}, [f"polite {verb} {thing}"])


def sort(rng: Random, held: bool) -> Row:
    """Words from A to Z."""
    words = list(draw(rng, "sort", held, lambda r: tuple(sorted(r.sample(w.ANIMALS, 3)))))
    told = rng.sample(words, len(words))
    user = rng.choice(["Sort these words: {}.", "Put in order: {}.", "Sort from A to Z: {}."]).format(", ".join(told))
    answer = f"From A to Z: {', '.join(words)}."
    return row("sort", user, answer, {"rule": "same_words", "answers": [answer]}, [f"sort {' '.join(words)}"])


def total(rng: Random, held: bool) -> Row:
    """A sum up to twelve or a difference, told as a story."""
    op, x, y = draw(rng, "sum", held, _sum)
    name = rng.choice(w.NAMES)
    thing = rng.choice(w.COUNTABLE)
    result = x + y if op == "+" else x - y
    if op == "+" and rng.random() < 0.5:
        x, y = y, x
    told = (
        f"{name} has {x} {plural(thing, x)} and {'gets' if op == '+' else 'loses'} {y}{' more' if op == '+' else ''}."
    )
    user = f"{told} How many {plural(thing)} does {name} have?"
    answer = f"{name} has {result} {plural(thing, result)}."
    check = {"rule": "all_of", "rules": [{"rule": "number", "value": result}, {"rule": "contains", "texts": [name]}]}
    return row(
        "sums", user, answer, check, [f"sum {op} {x if op == '-' else max(x, y)} {y if op == '-' else min(x, y)}"]
    )


def _sum(rng: Random) -> tuple[str, int, int]:
    x, y = rng.randint(1, 6), rng.randint(1, 6)
    x, y = max(x, y), min(x, y)
    return ("-", x + (x == y), y) if rng.random() < 0.4 else ("+", x, y)


def shape(rng: Random, held: bool) -> Row:
    """A rule of length or format: so many words about a thing, so many of a kind on lines or with commas, dashes between words."""
    kind = rng.randrange(3)
    if kind == 0:
        n, noun = draw(rng, "length", held, lambda r: (r.randint(4, 6), r.choice(w.ANIMALS + w.THINGS)))
        user = rng.choice(["Describe the {} in {} words.", "Tell me about the {} in {} words."]).format(
            noun, NUMBERS[n]
        )
        rules: list[dict[str, Any]] = [{"rule": "n_words", "n": n}, {"rule": "contains", "texts": [noun]}]
        return row("format", user, described(n, noun, rng), {"rule": "all_of", "rules": rules}, [f"length {n} {noun}"])
    if kind == 1:
        group, n, way = draw(
            rng, "group", held, lambda r: (r.choice(list(w.KINDS)), r.randint(2, 5), r.choice(["lines", "commas"]))
        )
        sep = "\n" if way == "lines" else ", "
        words = rng.sample(w.KINDS[group], n)
        user = f"Name {NUMBERS[n]} {group} {'on lines' if way == 'lines' else 'with commas'}."
        check = {"rule": "items", "n": n, "of": w.KINDS[group], "separator": sep.strip(" ")}
        return row("format", user, sep.join(words), check, [f"group {group} {n} {way}"])
    words = list(draw(rng, "dashes", held, lambda r: tuple(r.sample(w.SORTABLE + w.COLORS, 3))))
    answer = "-".join(words)
    user = f"Write with dashes: {', '.join(words)}."
    return row("format", user, answer, {"rule": "exact", "answers": [answer]}, [f"dashes {answer}"])


def tool_spec(name: str) -> dict[str, Any]:
    """Return the tool as OpenAI's API describes one."""
    key, kind, description = TOOLS[name]
    parameters = {"type": "object", "properties": {key: {"type": kind}}, "required": [key]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def tool(rng: Random, held: bool) -> Row:
    """A call of the right one of two tools with the right argument."""
    name, value = draw(rng, "tool", held, _call)
    asks = {
        "weather": ["What is the weather in {}?", "Is it warm in {}?"],
        "timer": ["Wake me in {} minutes.", "Wait for {} minutes."],
        "song": ["Play the song {}.", "I want to hear {}."],
        "phone": ["Call {}.", "I want to talk to {}."],
        "light": ["It is dark in the {}.", "I need light in the {}."],
    }
    arguments = {TOOLS[name][0]: value}
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    other = rng.choice([t for t in TOOLS if t != name])
    return {
        "messages": [
            {"role": "user", "content": rng.choice(asks[name]).format(value)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": [tool_spec(t) for t in rng.sample([name, other], 2)],
        "category": "tool",
        "check": {"rule": "tool_call", "name": name, "arguments": arguments},
        "items": [f"tool {name} {value}"],
    }


def _call(rng: Random) -> tuple[str, Any]:
    name = rng.choice(list(TOOLS))
    values: dict[str, list[Any]] = {
        "weather": w.CITIES, "timer": list(range(1, 60)), "song": w.SONGS, "phone": w.NAMES, "light": w.PLACES,
    }  # fmt: skip
    return name, rng.choice(values[name])


def pick(rng: Random, held: bool) -> Row:
    """The first or the last word of a list."""
    words = list(draw(rng, "pick", held, lambda r: tuple(r.sample(r.choice(list(w.KINDS.values())), r.randint(3, 4)))))
    which = rng.choice(["first", "last"])
    word = words[0 if which == "first" else -1]
    user = rng.choice(["Which word is {}? {}.", "Tell me the {} word: {}."]).format(which, ", ".join(words))
    answer = f"The {which} word is {word}."
    return row("pick", user, answer, {"rule": "same_words", "answers": [answer]}, [f"pick {' '.join(words)}"])


def define(rng: Random, held: bool) -> Row:
    """What a word means: told in pre-training, asked about here."""
    word = draw(rng, "define", held, lambda r: r.choice(list(w.DEFINITIONS)))
    thing = a(word)
    user = rng.choice([f"What is {thing}?", f"Explain what {thing} is."])
    answer = f"{thing[0].upper()}{thing[1:]} is {w.DEFINITIONS[word]}."
    return row("define", user, answer, {"rule": "same_words", "answers": [answer]}, [f"define {word}"])


FAMILIES: dict[str, Family] = {
    "passage": passage, "extract": extract, "sentiment": sentiment, "polite": polite, "sort": sort,
    "sums": total, "format": shape, "tool": tool, "pick": pick, "define": define,
}  # fmt: skip


def answer_text(row: Row) -> str:
    """Return the row's last answer as the model is to write it: its text, or its call between the template's tags."""
    last = row["messages"][-1]
    if not last.get("tool_calls"):
        return str(last["content"])
    call = last["tool_calls"][0]["function"]
    return f'<tool_call>{{"name": "{call["name"]}", "arguments": {call["arguments"]}}}</tool_call>'


def rows(seed: int, n: int, held: bool) -> list[Row]:
    """Return n rows, the families in turn, no prompt twice; a family that has no new prompt left gives way to the others."""
    rng = Random(f"tunesmith starter rows {seed} {held}")
    seen: set[str] = set()
    out: list[Row] = []
    left = list(FAMILIES)
    while len(out) < n and left:
        for name in list(left):
            for _ in range(200):
                made = FAMILIES[name](rng, held)
                key = json.dumps(made["messages"][:-1])
                if key not in seen:
                    break
            else:
                left.remove(name)
                continue
            seen.add(key)
            out.append(made)
    return out[:n]
