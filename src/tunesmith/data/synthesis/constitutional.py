"""constitutional: answers criticised by a principle and revised (Constitutional AI, Bai et al., 2022, arXiv 2212.08073, section 3)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.data.records import Chat, Preference
from tunesmith.data.synthesis._check import unusable_unless_refusal, words
from tunesmith.data.synthesis._constitution import Principle, read_principles
from tunesmith.data.synthesis._fence import fenced
from tunesmith.data.synthesis._reply import unframed
from tunesmith.data.synthesis._rounds import Chain, Made, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import as_messages, asked_turns, category, own_answers, shown

NEW_PROMPTS = False  # a row may ask what its seed asks
WHERE = "synthesize: constitutional.principles"
NEEDS = ("critique", "revision")
_ALONE = "Reply with the new answer alone."


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    principles: list[Any] | str | None = None,
    rounds: Annotated[int, Field(ge=1, le=4)] = 1,
    kind: Literal["chat", "preference"] = "chat",
    own_answer: bool = True,
) -> Rounds:
    """Return a row per seed with the revised answer (kind: chat), or the revised above the first one (kind: preference).

    own_answer: the model's own answer is revised; false: the row's. `principles`: a list, or a YAML file that is one (_constitution);
    each round draws one. A revision that changes nothing, or is of no use, makes no row.
    """
    laws = read_principles(principles, NEEDS, WHERE)
    return together(_chain(seed, sampling, laws, rounds, kind, own_answer) for seed in seeds)


def calls(seeds: Sequence[Seed], *, rounds: int = 1, own_answer: bool = True, **_: Any) -> int:
    """Return the most requests there will be."""
    return len(seeds) * (own_answer + 2 * rounds)


def quoted(seeds: Sequence[Seed], *, rounds: int = 1, own_answer: bool = True, **_: Any) -> int:
    """Return how many answers stand in later requests: each answer twice, each critique once (the row's own is no answer)."""
    return len(seeds) * (3 * rounds - (0 if own_answer else 2))


def check(*, principles: list[Any] | str | None = None, **_: object) -> None:
    """InputError where the principles are none."""
    read_principles(principles, NEEDS, WHERE)


def _chain(seed: Seed, sampling: Sampling, laws: list[Principle], rounds: int, kind: str, own_answer: bool) -> Chain:
    turns = asked_turns(seed.record)
    if turns is None:
        return Refused("a seed without a prompt of text alone")
    if own_answer:
        first = (yield sampling.request(turns, seed.id, 0)).strip()
    else:
        given = own_answers(seed.record)
        if not given:
            return Refused("a seed without answer")
        first = given[-1]  # of a preference the worst
    if why := unusable_unless_refusal(first):
        return Refused(why)
    rng, revised, drawn = sampling.rng(seed.id), first, []
    for n in range(rounds):
        law = laws[int(rng.integers(len(laws)))]
        drawn.append(law.name)
        material = {"question": shown(turns), "answer": revised}
        question = f"Below are a question and an answer to it. {law.critique}\n\n{fenced(material)}"
        critique = (yield sampling.request(ask(question), seed.id, 2 * n + 1)).strip()
        material["critique"] = critique
        request = f"Below are a question, an answer to it and a critique of the answer. {law.revision} {_ALONE}\n\n{fenced(material)}"
        revised = unframed((yield sampling.request(ask(request), seed.id, 2 * n + 2)), revised)
        if why := unusable_unless_refusal(revised):
            return Refused(why)
    if words(revised) == words(first):
        return Refused("a revision that changes nothing")
    prompt, extra = as_messages(turns), category(seed.record)
    best, worst = ([{"role": "assistant", "content": text}] for text in (revised, first))
    record: Chat | Preference = Preference(prompt, [best, worst], seed.record.origin, extra=extra)
    if kind == "chat":
        record = Chat(prompt + best, [False] * len(prompt) + [True], seed.record.origin, extra=extra)
    return Made(record, (seed.id,), {"principles": drawn})
