"""evol_instruct: instructions made harder or varied, and answered (Evol-Instruct: WizardLM, Xu et al., 2023, arXiv 2304.12244)."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from tunesmith.data.synthesis._check import unusable, words
from tunesmith.data.synthesis._novel import rouge_l
from tunesmith.data.synthesis._reply import unframed
from tunesmith.data.synthesis._rounds import Chain, Made, NoAnswer, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import exchange, question

NEW_PROMPTS = True  # a prompt like one there is makes no row
SAME = 0.9  # ROUGE-L from which an evolved instruction counts as the old one
DEEPER = {
    "constraints": "Add one more condition or requirement to it.",
    "deepen": "Where it asks about something, let it ask for more depth and breadth.",
    "concrete": "Put more specific notions in the place of general ones.",
    "reasoning": "If a little thinking is enough to solve it, let it explicitly need several steps of reasoning.",
    "input": "Add material to work on, such as a table, a formula, a piece of code or data.",
}
_DEEPEN = (
    "Make the instruction below a little harder, so that it still makes sense to people and can be answered. {} Add 10 to 20 words at "
    "most, keep its language, and do not answer it. Reply with the new instruction alone.\n\n<instruction>\n{}\n</instruction>"
)
_WIDEN = (
    "Read the instruction below and write a new one of the same field and length, but rarer, about something else. It must make sense "
    "to people and can be answered. Do not answer it. Reply with the new instruction alone.\n\n<instruction>\n{}\n</instruction>"
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    rounds: Annotated[int, Field(ge=1, le=5)] = 1,
    breadth: Annotated[float, Field(ge=0, le=1)] = 0.2,
    operations: list[str] | None = None,
) -> Rounds:
    """Return a chat for each seed after each of `rounds` evolutions; a share `breadth` of them in breadth, the rest in depth.

    An evolution that fails (no change, a refusal, words of our question, an answer of stop words alone) ends its seed's line.
    """
    return together(_chain(seed, sampling, rounds, breadth, operations or list(DEEPER)) for seed in seeds)


def calls(seeds: Sequence[Seed], *, rounds: int = 1, **_: Any) -> int:
    """Return the most requests there will be."""
    return 2 * len(seeds) * rounds


def quoted(seeds: Sequence[Seed], *, rounds: int = 1, **_: Any) -> int:
    """Return how many answers stand in later requests: an evolved instruction is answered, and evolved again."""
    return len(seeds) * (2 * rounds - 1)


def check(*, operations: list[str] | None = None, **_: object) -> None:
    """InputError for an operation there is none of."""
    from tunesmith.errors import InputError, did_you_mean

    for operation in operations or []:
        if operation not in DEEPER:
            raise InputError(
                f'synthesize: evol_instruct has no operation "{operation}".{did_you_mean(operation, DEEPER)}'
            )


def _chain(seed: Seed, sampling: Sampling, rounds: int, breadth: float, operations: list[str]) -> Chain:
    instruction = question(seed.record)
    if not instruction or not instruction.strip():
        return Refused("a seed without prompt")
    rng, made = sampling.rng(seed.id), []
    why: str | None = None
    try:
        for n in range(rounds):
            wide, operation = rng.random() < breadth, operations[int(rng.integers(len(operations)))]
            asked = _WIDEN.format(instruction) if wide else _DEEPEN.format(DEEPER[operation], instruction)
            evolved = unframed((yield sampling.request(ask(asked), seed.id, 2 * n)), instruction)
            why = unusable(evolved, least=3, most=1000) or (
                "an instruction that did not change" if rouge_l(words(evolved), words(instruction)) >= SAME else None
            )
            if why:
                break
            answered = (yield sampling.request(ask(evolved), seed.id, 2 * n + 1)).strip()
            why = unusable(answered)
            if why:
                break
            facts = {"operation": "breadth" if wide else operation, "round": n + 1}
            made.append(Made(exchange(evolved, answered, seed.record.origin), (seed.id,), facts))
            instruction = evolved
    except NoAnswer as none:
        why = str(none)
    return made or Refused(why or "nothing")
