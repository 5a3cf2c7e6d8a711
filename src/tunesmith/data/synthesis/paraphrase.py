"""paraphrase: the prompt, or the answer, reworded by a model; names, numbers and placeholders stay."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.data.synthesis._check import unfaithful, unusable
from tunesmith.data.synthesis._reply import unframed
from tunesmith.data.synthesis._rounds import Chain, Made, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import answer, question, with_answer, with_question

NEW_PROMPTS = False  # a row may ask what its seed asks
_QUESTION = (
    "Say the text below in other words. Keep its meaning, its language, every name, number, placeholder and piece of code, and what "
    "it asks for. Do not answer it. Reply with the reworded text alone.\n\n<text>\n{}\n</text>"
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    what: Literal["prompt", "answer"] = "prompt",
    copies: Annotated[int, Field(ge=1, le=10)] = 1,
) -> Rounds:
    """Return the rows with their question (what: prompt) or their first trained answer in other words, `copies` of each."""
    return together(_chain(seed, sampling, what, n) for seed in seeds for n in range(copies))


def calls(seeds: Sequence[Seed], *, copies: int = 1, **_: Any) -> int:
    """Return the most requests there will be."""
    return len(seeds) * copies


def quoted(seeds: Sequence[Seed], **_: Any) -> int:
    """Return how many answers stand in later requests: none."""
    return 0


def _chain(seed: Seed, sampling: Sampling, what: str, n: int) -> Chain:
    text = question(seed.record) if what == "prompt" else answer(seed.record)
    if not text or not text.strip():
        return Refused(f"a seed without {what}")
    said = unframed((yield sampling.request(ask(_QUESTION.format(text)), seed.id, n)), text)
    return reworded(seed, what, text, said)


def reworded(seed: Seed, what: str, text: str, said: str, **facts: str) -> Made | Refused:
    """Return the seed's row with `said` for `text`, or why it is no rewording."""
    why = unusable(said) or unfaithful(said, text)
    if why:
        return Refused(why)
    put = with_question if what == "prompt" else with_answer
    return Made(put(seed.record, said), (seed.id,), {"changed": what, **facts})
