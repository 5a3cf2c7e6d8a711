"""back_translation: the prompt, or the answer, into another language and back (Sennrich et al., 2016, arXiv 1511.06709)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.data.synthesis._check import unusable
from tunesmith.data.synthesis._reply import unframed
from tunesmith.data.synthesis._rounds import Chain, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import answer, question
from tunesmith.data.synthesis.paraphrase import reworded

NEW_PROMPTS = False  # a row may ask what its seed asks
_QUESTION = (
    "Translate the text below into {}. Keep names, numbers, placeholders and code as they are. Do not answer it. Reply with the "
    "translation alone.\n\n<text>\n{}\n</text>"
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    what: Literal["prompt", "answer"] = "prompt",
    through: Annotated[list[str], Field(min_length=1)] = ["German"],  # noqa: B006 (never changed)
    language: str = "English",
) -> Rounds:
    """Return the rows as they come back from each language of `through`; `language` is the one they are in."""
    return together(
        _chain(seed, sampling, what, pivot, language, n) for seed in seeds for n, pivot in enumerate(through)
    )


def calls(seeds: Sequence[Seed], *, through: Sequence[str] = ("German",), **_: Any) -> int:
    """Return the most requests there will be."""
    return 2 * len(seeds) * len(through)


def quoted(seeds: Sequence[Seed], *, through: Sequence[str] = ("German",), **_: Any) -> int:
    """Return how many answers stand in later requests: the translations."""
    return len(seeds) * len(through)


def _chain(seed: Seed, sampling: Sampling, what: str, pivot: str, language: str, n: int) -> Chain:
    text = question(seed.record) if what == "prompt" else answer(seed.record)
    if not text or not text.strip():
        return Refused(f"a seed without {what}")
    there = unframed((yield sampling.request(ask(_QUESTION.format(pivot, text)), seed.id, 2 * n)), text)
    if why := unusable(there):
        return Refused(why)
    back = unframed((yield sampling.request(ask(_QUESTION.format(language, there)), seed.id, 2 * n + 1)), text)
    return reworded(seed, what, text, back, through=pivot)
