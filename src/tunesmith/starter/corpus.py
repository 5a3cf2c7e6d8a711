"""Plain text for pre-training: short paragraphs of the small world that practise a skill each, never an instruction and its answer.

Copying a sequence, looking a fact up that was told earlier, ordering words, adding, naming a mood, asking politely, keeping
notes in JSON, logging a call: a model that has practised these in prose needs little to do them on demand.
"""

from collections.abc import Callable, Iterator
from random import Random

from tunesmith.starter import world as w
from tunesmith.starter.world import a, listed, plural

Paragraph = Callable[[Random], str]


def _words(rng: Random, n: int) -> list[str]:
    return rng.sample(w.WORDS, n)


def repeat(rng: Random) -> str:
    """A sequence of words, said again once or twice: what copying is learned from."""
    words = _words(rng, rng.randint(3, 14))
    style = rng.randrange(6)
    if style == 0:
        text = rng.choice([" ", ", ", " and "]).join(words)
        return f"{text}. {text}." + (f" {text}." if rng.random() < 0.4 else "")
    if style == 1:
        one, two = rng.sample(w.NAMES, 2)
        text = rng.choice([" ", ", "]).join(words)
        return f"{one} said {text}. {two} said {text}."
    if style == 2:
        return f"{' '.join(words)}\n" * rng.randint(2, 3)
    if style == 3:
        words = words[:5]
        sep = rng.choice(["-", "/", "\n", ", ", " / ", '", "', " + "])
        around = '"' if '"' in sep else ""
        lines = [rng.choice([", ", " ", " and "]).join(words), around + sep.join(words) + around]
        rng.shuffle(lines)
        return "\n".join(lines)
    if style == 4:  # the tail of what was said before
        start = rng.randrange(len(words) - 2)
        return f"{' '.join(words)}. Again from {words[start]}: {' '.join(words[start:])}."
    pairs = [(x, rng.choice(w.WORDS)) for x in words]
    again = rng.sample(pairs, len(pairs))
    link = rng.choice([" ", " is ", ": ", " has ", " and "])
    return ". ".join(x + link + y for x, y in pairs + again) + "."


def facts(rng: Random) -> str:
    """Who took what where, then one of the three told again from another."""
    n = rng.randint(2, 4)
    people, things, places = rng.sample(w.NAMES, n), rng.sample(w.THINGS, n), rng.sample(w.PLACES, n)
    rows = list(zip(people, things, places, strict=True))
    verb = rng.choice(["took", "brought", "carried"])
    told = [f"{p} {verb} the {t} to the {x}." for p, t, x in rows]
    again = []
    for p, t, x in rng.sample(rows, n):
        again.append(
            rng.choice([
                f"The {t} is in the {x}.",
                f"Now the {t} is in the {x}.",
                f"As for the {t}, it is in the {x}.",
                f"As for the {t}, {p} {verb} the {t} to the {x}.",
                f"As for the {t}, it was {p} who {verb} the {t}.",
                f"The {t} is in the {x} because {p} {verb} the {t}.",
                f"{p} {verb} the {t}.",
                f"{p} is in the {x}.",
                f"In the {x} there is the {t}.",
                f"In the {x} is {p} with the {t}.",
                f"What {p} {verb} was the {t}.",
                f"The {x} is where {p} {verb} the {t}.",
                f"Who knows where the {t} is? It is in the {x}, said {p}.",
                f"Everyone wonders who {verb} the {t}. It was {p} who {verb} the {t}.",
            ])
        )  # fmt: skip
    return " ".join(told + again)


def retold(rng: Random) -> str:
    """Short facts of one form, and all of them again in another order: looking up what was said of a word."""
    n = rng.randint(2, 5)
    rows = list(zip(rng.sample(w.NAMES, n), rng.sample(w.THINGS, n), rng.sample(w.PLACES, n), strict=True))
    verb = rng.choice(["took", "brought", "carried"])
    forms = [
        "The {t} is in the {x}.", "{p} has the {t}.", "{p} is in the {x}.", "The {t} of {p}.", f"{{p}} {verb} the {{t}} to the {{x}}.",
        "As for the {t}, {p} has it.", "In the {x} is the {t}.", "{t}: {x}.", "{t} {p}.", "{x} {t}.",
    ]  # fmt: skip
    form = rng.choice(forms)
    return " ".join(form.format(p=p, t=t, x=x) for p, t, x in [*rows, *rng.sample(rows, n)])


def people(rng: Random) -> str:
    """Sentences of a person each (job, town, age, pet, liking), and some of them told again from another side."""
    rows = [_person(rng, name) for name in rng.sample(w.NAMES, rng.randint(2, 3))]
    told, again = [], []
    for r in rows:
        said = list(_sayings(r).values())
        told += rng.sample(said, rng.randint(2, 4))
    told = rng.sample(told, len(told))
    for sentence in rng.sample(told, rng.randint(1, len(told))):
        again.append(rng.choice(["", "", "Yes, ", "It is true: "]) + sentence)
    return " ".join(told + again)


def _person(rng: Random, name: str) -> dict[str, str]:
    return {
        "name": name, "job": rng.choice(w.JOBS), "city": rng.choice(w.CITIES), "age": str(rng.randint(5, 79)),
        "pet": rng.choice(w.ANIMALS), "food": rng.choice(w.FOODS), "color": rng.choice(w.COLORS),
    }  # fmt: skip


def _sayings(r: dict[str, str]) -> dict[str, str]:
    n = r["name"]
    return {
        "job": f"{n} is {a(r['job'])}.",
        "city": f"{n} lives in {r['city']}.",
        "age": f"{n} is {r['age']} years old.",
        "pet": f"{n} has {a(r['pet'])}.",
        "food": f"{n} likes {r['food']}.",
        "color": f"The favorite color of {n} is {r['color']}.",
    }


def notes(rng: Random) -> str:
    """A sentence, and the note in JSON that someone made of it."""
    out = []
    for name in rng.sample(w.NAMES, rng.randint(1, 3)):
        r = _person(rng, name)
        r.update(thing=rng.choice(w.THINGS), place=rng.choice(w.PLACES))
        keys = rng.sample(["job", "city", "age", "pet", "food", "color", "thing", "place"], rng.randint(1, 3))
        said = _sayings(r) | {"thing": f"{name} bought {a(r['thing'])}.", "place": f"{name} went to the {r['place']}."}
        fields = ", ".join(f'"{k}": {r[k] if k == "age" else chr(34) + r[k] + chr(34)}' for k in ["name", *keys])
        out.append(" ".join(said[k] for k in keys) + rng.choice([" ", "\n", " In the notes: "]) + "{" + fields + "}")
    return "\n".join(out)


def order(rng: Random) -> str:
    """A list of words and the same from A to Z, or numbers from small to large."""
    out = []
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(w.NAMES)
        n = rng.randint(2, 6)
        if rng.random() < 0.12:
            numbers = rng.sample(range(10, 100), n)
            told, sorted_ = [str(x) for x in numbers], [str(x) for x in sorted(numbers)]
            way = "From small to large"
        else:
            told = rng.sample(w.SORTABLE, n)
            sorted_, way = sorted(told), "From A to Z"
        sep = rng.choice([", ", ", ", " "])
        said = sep.join(told)
        start = rng.choice([f"{name} wrote {said}.", f"Words: {said}.", f"There are {said}.", f"{said}."])
        out.append(f"{start} {way}" + rng.choice([": ", " they are ", " we say "]) + sep.join(sorted_) + ".")
    if rng.random() < 0.1:
        first = rng.randrange(len(w.SORTABLE) - 12)
        out.append("All in order: " + ", ".join(sorted(w.SORTABLE)[first : first + 12]) + ".")
    return "\n".join(out)


def ends(rng: Random) -> str:
    """A list and its first, second or last word."""
    words = rng.sample(rng.choice(list(w.KINDS.values())), rng.randint(3, 5))
    places = {"first": words[0], "second": words[1], "last": words[-1]}
    if len(words) > 3:
        places["third"] = words[2]
    told = rng.choice(
        [f"{rng.choice(w.NAMES)} saw {listed(words)}.", f"In a row: {', '.join(words)}.", f"{', '.join(words)}."]
    )
    keys = rng.sample(list(places), rng.randint(1, 3))
    again = [f"The {k} {rng.choice(['one', 'word'])} is {places[k]}." for k in keys]
    if rng.random() < 0.3:
        again.append(f"Backwards it is {', '.join(reversed(words))}.")
    if rng.random() < 0.3:
        again.append(f"There are {len(words)} words.")
    return " ".join([told, *again])


def sums(rng: Random) -> str:
    """Adding and taking away below twenty, bare and in stories."""
    out = []
    for _ in range(rng.randint(1, 4)):
        x, y = rng.randint(1, 9), rng.randint(1, 9)
        name, other = rng.sample(w.NAMES, 2)
        thing = rng.choice(w.COUNTABLE)
        if rng.random() < 0.55:
            total = x + y
            said = [
                f"{x} + {y} = {total}.",
                f"{x} and {y} make {total}.",
                f"{x} {plural(thing, x)} and {y} {plural(thing, y)} are {total} {plural(thing)}.",
                f"{name} had {x} {plural(thing, x)} and got {y} more. So {name} had {total} {plural(thing)}.",
                f"{name} had {x} {plural(thing, x)}. {other} gave {name} {y} more, which made {total} {plural(thing)}.",
            ]
        else:
            x, y = max(x, y) + (x == y), min(x, y)
            rest = x - y
            said = [
                f"{x} - {y} = {rest}.",
                f"{x} less {y} is {rest}.",
                f"{name} had {x} {plural(thing, x)} and lost {y}. So {name} had {rest} {plural(thing, rest)}.",
                f"{name} had {x} {plural(thing, x)}. {name} gave {y} to {other} and kept {rest} {plural(thing, rest)}.",
            ]
        out.append(rng.choice(said))
    return " ".join(out)


def moods(rng: Random) -> str:
    """Something was good or bad, and how that felt."""
    out = []
    for _ in range(rng.randint(1, 3)):
        subjects, good, bad = rng.choice(w.OPINIONS)
        kind = rng.random() < 0.5
        words = rng.sample(good if kind else bad, 2)
        one, two = rng.sample(subjects, 2)
        name = rng.choice(w.NAMES)
        feeling = rng.choice(w.GLAD if kind else w.SORRY)
        said = rng.choice([
            f"The {one} was {words[0]}.", f"The {one} was {words[0]} and the {two} was {words[1]}.",
            f"The {one} was {words[0]} and {words[1]}.", f"{name} found the {one} {words[0]}.",
        ])  # fmt: skip
        end = rng.choice([
            f"{name} was {feeling}.", f"That was {'good' if kind else 'bad'}.", f"It was a {'good' if kind else 'bad'} day for {name}.",
            f"{name} {'smiled' if kind else 'cried'}.", f"The feeling was {'good' if kind else 'bad'}.",
        ])  # fmt: skip
        out.append(f"{said} {end}")
    return " ".join(out)


def manners(rng: Random) -> str:
    """An order, and how a polite person asked the same in the story."""
    out = []
    for _ in range(rng.randint(1, 3)):
        verb = rng.choice(list(w.ACTIONS))
        thing = rng.choice(w.ACTIONS[verb] if rng.random() < 0.7 else w.THINGS)
        one, two = rng.sample(w.NAMES, 2)
        Verb = verb.capitalize()
        out.append(
            rng.choice([
                f'{one} shouted: "{Verb} the {thing}!" {two} asked nicely: "Could you please {verb} the {thing}?"',
                f'"{Verb} the {thing}," said {one}. "Could you please {verb} the {thing}?" said {two}, who was polite.',
                f"Rude: {Verb} the {thing}. Polite: Could you please {verb} the {thing}?",
                f"{one} did {verb} the {thing}. {two} did {verb} the {thing} too.",
            ])
        )  # fmt: skip
    return "\n".join(out)


def log(rng: Random) -> str:
    """What people wished, and the line in the log of the machine that served them."""
    out = []
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(w.NAMES)
        city, song, minutes, other, place = (
            rng.choice(w.CITIES), rng.choice(w.SONGS), rng.randint(1, 60), rng.choice(w.NAMES), rng.choice(w.PLACES),
        )  # fmt: skip
        wish, call, key, value = rng.choice([
            (f"{name} wanted to know the weather in {city}.", "weather", "city", city),
            (f"{name} asked how warm it was in {city}.", "weather", "city", city),
            (f"{name} wanted to hear the song {song}.", "song", "title", song),
            (f"{name} asked for the music of {song}.", "song", "title", song),
            (f"{name} wanted to wait for {minutes} minutes.", "timer", "minutes", str(minutes)),
            (f"{name} set an alarm in {minutes} minutes.", "timer", "minutes", str(minutes)),
            (f"{name} wanted to call {other} on the phone.", "phone", "person", other),
            (f"{name} wanted to talk to {other}.", "phone", "person", other),
            (f"{name} wanted light in the {place}.", "light", "room", place),
            (f"{name} said it was dark in the {place}.", "light", "room", place),
        ])  # fmt: skip
        shown = value if key == "minutes" else f'"{value}"'
        line = rng.choice(
            [f'{call} {{"{key}": {shown}}}', f"{call}({key}: {value})", f'{{"call": "{call}", "{key}": {shown}}}']
        )
        out.append(f"{wish} The log said {line}")
    return "\n".join(out)


def meanings(rng: Random) -> str:
    """What words mean."""
    words = rng.sample(list(w.DEFINITIONS), rng.randint(1, 4))
    out = []
    for word in words:
        thing = a(word)
        out.append(
            rng.choice(
                [
                    f"{thing[0].upper()}{thing[1:]} is {w.DEFINITIONS[word]}.",
                    f"{rng.choice(w.NAMES)} knows that {thing} is {w.DEFINITIONS[word]}.",
                ]
            )
        )
    return " ".join(out)


def kinds(rng: Random) -> str:
    """Words of one kind, in the shapes lists are written in."""
    kind = rng.choice(list(w.KINDS))
    words = rng.sample(w.KINDS[kind], rng.randint(2, 5))
    many = {2: "two", 3: "three", 4: "four", 5: "five"}[len(words)]
    return rng.choice([
        f"{listed(words)} are {many} {kind}.",
        f"{many.capitalize()} {kind}: {', '.join(words)}.",
        f"{many.capitalize()} {kind}:\n" + "\n".join(f"- {x}" for x in words),
        f"{many.capitalize()} {kind}:\n" + "\n".join(words),
        f"{rng.choice(w.NAMES)} knows {many} {kind}, {listed(words)}.",
        f"{many.capitalize()} {kind} in a row: {'-'.join(words)}.",
    ])  # fmt: skip


def described(n: int, noun: str, rng: Random) -> str:
    """Return a sentence of exactly n words (3 to 6) about the noun."""
    one, two = rng.sample(w.MEASURES, 2)
    return {
        3: f"{noun.capitalize()}s are {one}." if noun not in w.PLURALS and noun not in w.MASS else f"I like {noun}.",
        4: f"The {noun} is {one}.",
        5: f"The {noun} is very {one}.",
        6: f"The {noun} is {one} and {two}.",
    }[n]


def looks(rng: Random) -> str:
    """How things look, said in a counted number of words."""
    out = []
    for noun in rng.sample(w.ANIMALS + w.THINGS, rng.randint(1, 3)):
        n = rng.randint(3, 6)
        said = described(n, noun, rng)
        many = {3: "three", 4: "four", 5: "five", 6: "six"}[n]
        out.append(
            rng.choice([said, f"{said} That was {many} words.", f"In {many} words: {said}", f"In {n} words: {said}"])
        )
    return " ".join(out)


def story(rng: Random) -> str:
    """A short story of a person, a wish and its end."""
    name, friend = rng.sample(w.NAMES, 2)
    they = "she" if name in w.GIRLS else "he"
    thing, place, other, pet, color = (
        rng.choice(w.THINGS), rng.choice(w.PLACES), rng.choice(w.PLACES), rng.choice(w.ANIMALS), rng.choice(w.COLORS),
    )  # fmt: skip
    job, city, day = rng.choice(w.JOBS), rng.choice(w.CITIES), rng.choice(w.WEEK)
    return rng.choice([
        f"One day {name} lost the {color} {thing}. {they.capitalize()} looked in the {place} but the {thing} was not there. "
        f"Then {friend} found the {thing} in the {other}. {name} was {rng.choice(w.GLAD)} and said thank you to {friend}.",
        f"On {day} {name} went to the {place}. There {they} saw {a(pet)}. The {pet} was {rng.choice(w.COLORS)}. "
        f"{name} gave the {pet} {a(rng.choice(w.FOODS))}. The {pet} was {rng.choice(w.GLAD)}.",
        f"{name} is {a(job)} from {city}. Every {day} {name} works with {a(w.TOOLS_OF[job])}. "
        f"In the evening {they} goes to the {place} with {friend}. {friend} comes from {rng.choice(w.CITIES)}.",
        f"{name} and {friend} are friends. {name} has {a(thing)} and {friend} has {a(pet)}. They meet in the {place}. "
        f"{friend} likes the {thing} of {name}, and {name} likes the {pet} of {friend}.",
        f"{name} wanted {a(thing)}. It cost too much, and {name} was {rng.choice(w.SORRY)}. {friend} helped, and they worked in the "
        f"{place}. On {day} {name} bought the {thing}.",
    ])  # fmt: skip


# How much of the text each paragraph is, in parts of its count.
MIX: list[tuple[Paragraph, float]] = [
    (repeat, 14), (retold, 16), (facts, 24), (people, 6), (notes, 7), (order, 10), (ends, 7), (sums, 8), (moods, 4), (manners, 4),
    (log, 6), (meanings, 7), (kinds, 5), (looks, 3), (story, 4),
]  # fmt: skip


def document(rng: Random) -> str:
    """Return one document: one in three a repetition, the others a few paragraphs of mixed kinds or of one kind throughout."""
    if rng.random() < 0.33:
        return repetition(rng)
    makers, weights = [m for m, _ in MIX], [x for _, x in MIX]
    only = rng.choices(makers, weights)[0] if rng.random() < 0.4 else None
    n = rng.choice([1, 1, 1, 2, 2, 3])
    return "\n".join((only or rng.choices(makers, weights)[0])(rng).strip() for _ in range(n))


def documents(seed: int, n: int) -> Iterator[str]:
    """Yield n documents: the same for the same seed, and the first n of any longer run."""
    rng = Random(f"tunesmith starter corpus {seed}")
    for _ in range(n):
        yield document(rng)


def repetition(rng: Random) -> str:
    """A sequence of words and its repetition, mostly bare."""
    text = " ".join(_words(rng, rng.randint(4, 14)))
    return f"{text}. {text}." if rng.random() < 0.7 else repeat(rng).strip()


def repetitions(seed: int, n: int) -> Iterator[str]:
    """Yield n repetitions: before anything else, copying is learned from these."""
    rng = Random(f"tunesmith starter repetitions {seed}")
    for _ in range(n):
        yield repetition(rng)
