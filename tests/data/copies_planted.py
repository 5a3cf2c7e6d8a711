"""Rows of Alpaca's lengths in a language of its own, near copies of them by edits, and others that only look like copies."""

import random
from itertools import accumulate

from tunesmith.data.records import Chat, Origin

FUNCTION_WORDS = (
    "the of and a to in is that it for was on are with as be at this from by not or which but have an they you can"
)
FUNCTION = FUNCTION_WORDS.split()
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
EDITS = ("replace", "insert", "delete", "swap", "mixed", "move")


class Writer:
    """Draws words as language does: half are function words, the others by Zipf's law from 8,000."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.words = ["".join(self.r.choices(SYLLABLES, k=self.r.randint(2, 4))) for _ in range(8000)]
        self.weights = list(accumulate(1 / (i + 10) for i in range(len(self.words))))

    def content(self, n: int) -> list[str]:
        """Return n words that are no function words."""
        return self.r.choices(self.words, cum_weights=self.weights, k=n)

    def sentence(self, n: int) -> str:
        """Return a sentence of n words."""
        said = [self.r.choice(FUNCTION) if self.r.random() < 0.45 else self.content(1)[0] for _ in range(n)]
        return " ".join(said).capitalize() + "."

    def text(self, n: int) -> str:
        """Return sentences of about n words in all."""
        out: list[str] = []
        while n > 0:
            length = min(n, self.r.randint(6, 18))
            out.append(self.sentence(length))
            n -= length
        return " ".join(out)

    def row(self, number: int) -> Chat:
        """Return a question of 5 to 40 words with an answer of 8 to 150."""
        return chat(self.text(self.r.randint(5, 40)), self.text(int(8 * 1.2 ** self.r.uniform(0, 16))), number)

    def edited(self, text: str, share: float) -> str:
        """Return the text with that share of its words edited in one of the ways of EDITS."""
        kind = self.r.choice(EDITS)
        if kind == "move":
            sentences = text.split(". ")
            self.r.shuffle(sentences)
            text, share = ". ".join(sentences), share / 2
        words = text.split()
        for _ in range(max(1, round(share * len(words)))):
            how = self.r.choice(EDITS[:4]) if kind in ("mixed", "move") else kind
            at = self.r.randrange(len(words))
            if how == "replace":
                words[at] = self.content(1)[0]
            elif how == "insert":
                words.insert(at, self.content(1)[0])
            elif how == "delete" and len(words) > 3:
                del words[at]
            elif how == "swap" and at + 1 < len(words):
                words[at], words[at + 1] = words[at + 1], words[at]
        return " ".join(words)

    def copy(self, of: Chat, number: int) -> Chat:
        """Return a near copy: 5 to 15% of the words edited."""
        share = self.r.uniform(0.05, 0.15)
        return chat(*(self.edited(m["content"], share) for m in of.messages), number)

    def lookalikes(self) -> list[Chat]:
        """Return pairs and groups of rows that share much and say other things: none is a copy of another."""
        r, out = self.r, []
        long = "Read the review below with care and say whether its writer liked the film or not with one word only. The review is {} So?"
        for _ in range(150):  # one template for a fifth of the set, brief answers
            out.append(chat(long.format(self.sentence(12)), r.choice(["positive", "negative"]), 0))
        rare = "Here comes what a critic wrote; you have to decide in one word if it is meant well or ill, and nothing more. {} Answer:"
        for _ in range(30):  # a template that few rows have
            out.append(chat(rare.format(self.sentence(12)), r.choice(["well", "ill"]), 0))
        for word in r.sample(self.words, 120):  # another subject
            out.append(
                chat(
                    f"What is the sign for {word} in the table?", f"The sign for {word} in the table is {word[:2]}.", 0
                )
            )
        for _ in range(60):  # a sum with other numbers
            text = self.text(40).split()
            for _ in range(2):
                numbers = [str(r.randint(2, 999)) for _ in range(6)]
                places = range(3, 39, 6)
                said = [numbers[places.index(i)] if i in places else w for i, w in enumerate(text)]
                out.append(
                    chat(
                        " ".join(said), f"It makes {r.randint(2, 99999)} in all, for {numbers[0]} less {numbers[1]}.", 0
                    )
                )
        for _ in range(60):  # one prompt, two answers
            prompt = self.text(30)
            out += [chat(prompt, self.text(40), 0), chat(prompt, self.text(40), 0)]
        for _ in range(30):  # one passage, other questions with brief answers
            passage = self.text(90)
            for _ in range(3):
                out.append(chat(f"{passage}\n{self.sentence(7)}", " ".join(self.content(2)), 0))
        return out


def chat(asked: str, answered: str, number: int) -> Chat:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(turns, [False, True], Origin("planted.jsonl", number))
