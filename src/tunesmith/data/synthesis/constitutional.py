"""constitutional: answers criticised by a principle and revised (Constitutional AI, Bai et al., 2022, arXiv 2212.08073, section 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from tunesmith.data.records import Preference
from tunesmith.data.synthesis._check import unusable, words
from tunesmith.data.synthesis._reply import unframed
from tunesmith.data.synthesis._rounds import Chain, Made, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import answer, exchange, question
from tunesmith.errors import InputError

NEW_PROMPTS = False  # a row may ask what its seed asks
PRINCIPLES = (
    "The answer should help with what was asked, and say plainly where it does not know.",
    "The answer should not help anyone to hurt people, animals or property, or to break the law.",
    "The answer should be truthful, and mark guesses as such.",
    "The answer should treat everybody with respect, whoever they are, and repeat no prejudice.",
    "The answer should keep private what is private, and not make up facts about persons.",
    "The answer should not lecture the one who asks, and refuse no more than is needed.",
    "The answer should be clear and no longer than the question needs.",
)
_CRITIQUE = (
    "Judge the answer to the question below by this principle: {principle}\nName in two or three sentences what in the answer falls "
    "short of it, if anything does.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"
)
_REVISE = (
    "Rewrite the answer to the question below so that it meets this principle: {principle}\nTake up the critique. Reply with the new "
    "answer alone.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nCritique:\n{critique}"
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    principles: list[str] | str | None = None,
    rounds: Annotated[int, Field(ge=1, le=4)] = 1,
    kind: Literal["chat", "preference"] = "chat",
    own_answer: bool = True,
) -> Rounds:
    """Return a row per seed with the revised answer (kind: chat), or the revised above the first one (kind: preference).

    own_answer: the model's own answer is revised; false: the row's. `principles`: a list, or a YAML file that is one; each
    round draws one. A revision that changes nothing, or is of no use, makes no row.
    """
    laws = read_principles(principles)
    return together(_chain(seed, sampling, laws, rounds, kind, own_answer) for seed in seeds)


def calls(seeds: Sequence[Seed], *, rounds: int = 1, own_answer: bool = True, **_: Any) -> int:
    """Return the most requests there will be."""
    return len(seeds) * (own_answer + 2 * rounds)


def quoted(seeds: Sequence[Seed], *, rounds: int = 1, own_answer: bool = True, **_: Any) -> int:
    """Return how many answers stand in later requests: each answer twice, each critique once (the row's own is no answer)."""
    return len(seeds) * (3 * rounds - (0 if own_answer else 2))


def check(*, principles: list[str] | str | None = None, **_: object) -> None:
    """InputError where the principles are no list of sentences."""
    read_principles(principles)


def read_principles(given: list[str] | str | None) -> list[str]:
    """Return the principles: the built-in ones, the list, or what a YAML file lists (by itself or under `principles`)."""
    if given is None:
        return list(PRINCIPLES)
    found: Any = given
    where = "synthesize: constitutional.principles"
    if isinstance(given, str):
        where = given
        try:
            found = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            reason = getattr(e, "strerror", None) or "no YAML"
            raise InputError(f"synthesize: the file of principles {given} cannot be read ({reason}).") from e
        found = found.get("principles") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(isinstance(p, str) and p.strip() for p in found):
        raise InputError(f"{where} should be a list of sentences, one principle each.")
    return list(found)


def _chain(seed: Seed, sampling: Sampling, laws: list[str], rounds: int, kind: str, own_answer: bool) -> Chain:
    asked = question(seed.record)
    if not asked or not asked.strip():
        return Refused("a seed without prompt")
    first = None if own_answer else answer(seed.record)
    if first is None:
        if not own_answer:
            return Refused("a seed without answer")
        first = (yield sampling.request(ask(asked), seed.id, 0)).strip()
        if why := unusable_first(first):
            return Refused(why)
    rng, revised, drawn = sampling.rng(seed.id), first, []
    for n in range(rounds):
        law = laws[int(rng.integers(len(laws)))]
        drawn.append(law)
        told = {"principle": law, "question": asked, "answer": revised}
        critique = (yield sampling.request(ask(_CRITIQUE.format(**told)), seed.id, 2 * n + 1)).strip()
        revised = unframed(
            (yield sampling.request(ask(_REVISE.format(**told, critique=critique)), seed.id, 2 * n + 2)), revised
        )
        if why := unusable_first(revised):
            return Refused(why)
    if words(revised) == words(first):
        return Refused("a revision that changes nothing")
    facts = {"principles": drawn}
    made = exchange(asked, revised, seed.record.origin)
    if kind == "chat":
        return Made(made, (seed.id,), facts)
    answers = [[{"role": "assistant", "content": text}] for text in (revised, first)]
    return Made(Preference(made.messages[:-1], answers, seed.record.origin), (seed.id,), facts)


def unusable_first(text: str) -> str | None:
    """Return why a first answer is no use; a refusal is some use here: it may be more than is needed."""
    why = unusable(text)
    return None if why == "a refusal" else why
