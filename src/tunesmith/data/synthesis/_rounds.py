"""Requests to a model and how ways of making rows ask them: in rounds, many chains of questions side by side."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from tunesmith.data.records import Message, Record

CUT_OFF = "an answer cut off at max_tokens"
AT_ONCE = 512  # chains that run side by side: what an interruption may have under way, and what is held in memory


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model: its messages, the longest answer in tokens, and the sampling's temperature and seed.

    judge: it goes to the judge, not to the model that writes. choices: asked are the log-probabilities with which the answer begins
    with each of these; it is {choice: log p} as JSON.
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int = 512
    temperature: float = 0.7
    seed: int = 0
    judge: bool = False
    choices: tuple[str, ...] = ()

    def as_messages(self) -> list[Message]:
        """Return the messages in OpenAI's form."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How all requests of a way are sampled; each gets a seed of its own, of the run's, its row and its number there."""

    max_tokens: int = 512
    temperature: float = 0.7
    seed: int = 0

    def request(self, messages: tuple[tuple[str, str], ...], row: int, number: int = 0) -> Request:
        """Return the request number `number` that is made for a row."""
        own = int(np.random.SeedSequence([self.seed, row, number]).generate_state(1)[0])
        return Request(messages, self.max_tokens, self.temperature, own)

    def rng(self, row: int) -> np.random.Generator:
        """Return the random numbers of what is drawn for a row: an operation, a principle."""
        return np.random.default_rng([self.seed, row, 1 << 20])


def ask(content: str, system: str = "") -> tuple[tuple[str, str], ...]:
    """Return the messages of one question."""
    return ((("system", system),) if system else ()) + (("user", content),)


@dataclass(frozen=True, slots=True)
class Seed:
    """A row that something is made from, with its id in the preparation."""

    id: int
    record: Record


@dataclass(frozen=True, slots=True)
class Made:
    """A row that was made: the seeds' ids, and what a reader should know (operation, principle, language, ...)."""

    record: Record
    of: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """An attempt that came to nothing, and why, in a few words that are counted."""

    why: str


class NoAnswer(Exception):  # noqa: N818 (it is no error)
    """Why a request has no answer that is of use: cut off at max_tokens, refused by the endpoint."""


Answer = str | NoAnswer
Chain = Generator[Request, str, Made | Refused | list[Made]]
Rounds = Generator[list[Request], list[Answer], tuple[list[Made], Counter[str]]]


def together(chains: Iterable[Chain]) -> Rounds:
    """Run chains of questions side by side, AT_ONCE at a time; return what they made in the chains' order, and refusals counted.

    A request without an answer raises its NoAnswer in the chain that asked; one that does not catch it came to nothing.
    """
    made: list[Made] = []
    refused: Counter[str] = Counter()
    waiting = iter(chains)
    while group := list(islice(waiting, AT_ONCE)):
        results: dict[int, Made | Refused | list[Made]] = {}
        asked: dict[int, Request] = {}
        for index, chain in enumerate(group):
            _advance(index, lambda chain=chain: next(chain), asked, results)  # type: ignore[misc]
        while asked:
            order = list(asked)
            answers = yield [asked[index] for index in order]
            asked = {}
            for index, answer in zip(order, answers, strict=True):
                _advance(index, lambda i=index, a=answer: _told(group[i], a), asked, results)  # type: ignore[misc]
        for index in range(len(group)):
            found = results[index]
            if isinstance(found, Refused):
                refused[found.why] += 1
            else:
                made += found if isinstance(found, list) else [found]
    return made, refused


def _told(chain: Chain, answer: Answer) -> Request:
    return chain.throw(answer) if isinstance(answer, NoAnswer) else chain.send(answer)


def _advance(
    index: int, step: Callable[[], Request], asked: dict[int, Request], results: dict[int, Made | Refused | list[Made]]
) -> None:
    try:
        asked[index] = step()
    except StopIteration as end:
        results[index] = end.value
    except NoAnswer as none:
        results[index] = Refused(str(none))


def drive(rounds: Rounds, answer: Callable[[Sequence[Request]], list[Answer]]) -> tuple[list[Made], Counter[str]]:
    """Answer each round's requests until there are no more; return (what was made, refusals counted by reason)."""
    try:
        requests = next(rounds)
        while True:
            requests = rounds.send(answer(requests))
    except StopIteration as end:
        made, refused = end.value
        return made, refused
