"""Clean rows of several formats in varied natural text, drawn from a seed: what inspection must find nothing wrong with."""

import json
import random

NAMES = [
    "José", "Zoë", "Łukasz", "Søren", "Aïcha", "Müller", "Nguyễn", "李雷", "Мария", "Ødegaard", "Siobhán", "O’Neill",
    "Tanaka", "Renée", "Grace", "Ahmed",
]  # fmt: skip
PLACES = [
    "Kraków", "Zürich", "Lyon", "Nairobi", "Osaka", "Bogotá", "Oslo", "Québec", "Leeds", "Austin", "Málaga", "Tromsø",
    "Hanoi", "Perth", "Łódź", "Geneva",
]  # fmt: skip
THINGS = [
    "a bridge", "the harvest", "a small museum", "the night train", "a solar oven", "the old library",
    "a weather balloon", "the choir", "a bakery", "the tide", "an orchard", "a radio play", "the chess club",
    "a water mill", "the ferry", "a garden wall", "the glacier", "a film archive",
]  # fmt: skip
DOES = [
    "attracts more visitors in spring", "needs repair before winter", "costs less than people expect",
    "was designed by students", "changed how the town works", "is open on weekdays only",
    "feeds about forty families", "runs on rain water", "became a symbol of the region",
    "uses half the energy of its predecessor", "has a long and odd history", "depends on volunteers",
    "surprised the engineers",
]  # fmt: skip
WHY = [
    "because the soil keeps its warmth", "although few people noticed", "when the river is low",
    "since the law of 1987", "if the wind comes from the north", "as the report of the council says",
    "while the roof is being mended", "after the vote in May",
]  # fmt: skip
ASK = [
    "Explain why {t} {d}.", "Write a short note about {t} in {p}.", "What should {n} know about {t}?",
    "Summarise the following: {s}", "Give three facts about {t} near {p}.", "Is it true that {t} {d}?",
    "Describe {t} to a child of {i} years.", "Compare {t} in {p} with {u}.", "How would {n} improve {t}?",
    "List the steps to visit {t} in {p}.",
]  # fmt: skip
CATEGORIES = ("open_qa", "closed_qa", "summarisation", "brainstorming")
GERMAN = (
    "Die alte Mühle am Fluss wurde im vergangenen Jahr von einer Gruppe junger Leute wieder aufgebaut, weil sie dort gemeinsam "
    "Brot backen und Konzerte veranstalten wollten. Niemand hatte damit gerechnet, dass so viele Besucher kommen würden."
)


class Writer:
    """Draws texts; no prompt twice."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self._asked: set[str] = set()

    def sentence(self) -> str:
        r = self.r
        subject, does = r.choice(THINGS), r.choice(DOES)
        start = r.choice(
            (subject.capitalize(), f"{r.choice(NAMES)} says that {subject}", f"In {r.choice(PLACES)}, {subject}")
        )
        number = r.choice(
            (
                "",
                "",
                f", by {r.randint(2, 98)}.{r.randint(0, 9)} %",
                f" (about {r.randint(3, 900)} km²)",
                f" for €{r.randint(5, 70)}",
            )
        )
        return f"{start} {does}{number}{r.choice(('', ' ' + r.choice(WHY)))}{r.choice(('.', '.', '.', '!'))}"

    def prose(self, low: int = 2, high: int = 6) -> str:
        return " ".join(self.sentence() for _ in range(self.r.randint(low, high)))

    def listed(self) -> str:
        mark = self.r.choice(("- ", "* ", None))
        items = [self.sentence().rstrip(".!") for _ in range(self.r.randint(2, 5))]
        return "\n".join((mark or f"{i}. ") + item for i, item in enumerate(items, 1))

    def code(self) -> str:
        n = self.r.randint(2, 500)
        bodies = (
            f"```python\ndef scaled(x):  # TODO: units\n    return x * {n}\n```",
            f"```html\n<p>Fish &amp; chips, {n}&nbsp;g</p>\n<li>{{{{ item.name }}}}</li>\n```",
            f"```json\n{json.dumps({'n': n, 'tags': ['a', 'b']})}\n```",
            f"```bash\necho -e 'a\\nb' | head -{n}\n```",
        )
        return f"{self.sentence()}\n\n{self.r.choice(bodies)}\n\n{self.sentence()}"

    def table(self) -> str:
        rows = "\n".join(f"| {self.r.choice(PLACES)} | {self.r.randint(1, 99)} |" for _ in range(self.r.randint(2, 5)))
        return f"{self.sentence()}\n\n| place | number |\n|---|---|\n{rows}"

    def odd(self) -> str:
        """What looks wrong at a glance and is not."""
        r = self.r
        return r.choice(
            (
                f"„Zum Löwen“ – so the inn in {r.choice(PLACES)} is called; CAFÉ” is on its sign, and SPÖ–ÖVP on the poster.",
                f"The family 👨‍👩‍👧 met at {r.randint(1, 12)} o’clock 🎉, and naïve façades were admired.",
                f"The area is $A = \\pi r^{{2}}$ with $r = {r.randint(2, 99)}$, so $\\nu$ and $\\nabla$ do not matter.",
                f"Write to your.name@example.com about seat {r.randint(1, 80)}, order 4711-{r.randint(100, 999)}.",
                f"AT&T and R&D spent {r.randint(2, 90)} % more; the x<y test holds, and so does y>z.",
                f"São João, Ângela and Ção are names; so is Łukasz, and {r.choice(NAMES)} as well, {r.randint(2, 99)} times.",
                f"ha ha ha, laughed {r.choice(NAMES)}, and left {r.choice(PLACES)} on day {r.randint(2, 300)}.",
            )
        )

    def answer(self, short: bool = True) -> str:
        kinds = [self.prose, self.prose, self.prose, self.listed, self.code, self.table, self.odd]
        if short:
            kinds += [
                lambda: str(self.r.randint(1, 9999)),
                lambda: self.r.choice(("Yes.", "No.", "Perhaps.", self.r.choice(PLACES))),
            ]
        return self.r.choice(kinds)()

    def prompt(self) -> str:
        r = self.r
        while True:
            words = {"t": r.choice(THINGS), "u": r.choice(THINGS), "d": r.choice(DOES), "p": r.choice(PLACES)}
            text = r.choice(ASK).format(**words, n=r.choice(NAMES), i=r.randint(5, 12), s=self.prose(1, 2))
            if text not in self._asked:
                self._asked.add(text)
                return text


def alpaca(w: Writer) -> dict:
    prompt = w.prompt()
    row = {
        "instruction": prompt,
        "input": w.prose(1, 2) if w.r.random() < 0.3 else "",
        "output": w.answer(),
        "category": w.r.choice(CATEGORIES),
    }
    if w.r.random() < 0.02:
        row |= {
            "instruction": f"Translate into French: {w.sentence()}",
            "output": "Le vieux moulin a été réparé au printemps par des jeunes du village.",
        }
    return row


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"type": "string", "enum": ["c", "f"]},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "list_trains", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}},
    },
]


def call(id_: str, name: str, arguments: object) -> dict:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": written}}


def says(role: str, content: str, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def messages(w: Writer) -> dict:
    kind = w.r.random()
    turns = [says("system", w.sentence())] if w.r.random() < 0.4 else []
    turns.append(says("user", w.prompt()))
    if kind < 0.4:
        turns.append(says("assistant", w.answer()))
        for _ in range(w.r.randint(0, 2)):
            turns += [says("user", w.prompt()), says("assistant", w.answer())]
        return {"messages": turns}
    place = w.r.choice(PLACES)
    calls = [call("c1", "get_weather", {"place": place, "days": w.r.randint(1, 9), "unit": "c"})]
    results = [says("tool", json.dumps({"temperature": w.r.randint(-20, 35)}), tool_call_id="c1")]
    if kind > 0.8:  # two calls at once, answered in the other order
        calls.append(call("c2", "list_trains", {"to": place}))
        results.insert(0, says("tool", "[]", tool_call_id="c2"))
    turns.append(says("assistant", "", tool_calls=calls))
    if kind > 0.5:
        turns += [*results, says("assistant", w.prose(1, 3))]
    return {"messages": turns, "tools": TOOLS}


def preference(w: Writer) -> dict:
    a, b = w.prose(2, 5), w.prose(2, 5)
    good = w.r.randint(6, 10)
    return {"prompt": w.prompt(), "chosen": a, "rejected": b, "score_chosen": good, "score_rejected": w.r.randint(1, 5)}


def verdict(w: Writer) -> dict:
    return {"prompt": w.prompt(), "completion": w.prose(), "label": w.r.random() < 0.5}


FORMATS = {"alpaca": alpaca, "messages": messages, "preference": preference, "verdict": verdict}


def rows(name: str, n: int, writer: Writer) -> list[dict]:
    """Return n clean rows of a format."""
    return [FORMATS[name](writer) for _ in range(n)]
