"""self_instruct: new instructions in the manner of the seeds, and their answers (Wang et al., 2023, arXiv 2212.10560)."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tunesmith.data.synthesis._check import unusable, words
from tunesmith.data.synthesis._novel import Known
from tunesmith.data.synthesis._reply import listed
from tunesmith.data.synthesis._rounds import Made, NoAnswer, Request, Rounds, Sampling, Seed, ask
from tunesmith.data.synthesis._turns import exchange, question

NEW_PROMPTS = True  # a prompt like one there is makes no row
PER_REQUEST = 8  # instructions asked for at a time
_FRESH = 2  # of the examples shown, those that were made before (section 3.1: 6 by people, 2 by the model)
_REQUEST = (
    "Here are {} instructions for an assistant. Write {} more, as different from these and from each other as you can, in wording, "
    "kind of task and subject, each on its own line with its number and complete in itself. No answers.\n\n{}"
)
# What a model of text cannot do (section 3.1 filters by such words).
_BEYOND = re.compile(
    r"\b(image|picture|photo|video|audio|graph|draw|plot a|file attached|recording|website link)s?\b", re.IGNORECASE
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 100,
    examples: Annotated[int, Field(ge=2, le=20)] = 8,
    rouge: Annotated[float, Field(gt=0, le=1)] = 0.7,
    category: str | None = None,
) -> Rounds:
    """Return up to `count` chats of new instructions; each new one has ROUGE-L below `rouge` with every seed and every other.

    Ends before `count` when three rounds in a row bring nothing new. `category`: what the new rows' category field says.
    """
    pool = [(seed, text) for seed in seeds if (text := question(seed.record)) and text.strip()]
    refused: Counter[str] = Counter()
    if not pool:
        return [], Counter({"a seed without prompt": len(seeds)})
    known = Known(rouge)
    for _, text in pool:
        known.add(text)
    found: list[tuple[str, tuple[Seed, ...]]] = []
    number = dry = 0
    while len(found) < count and dry < 3:
        wanted = -(-(count - len(found)) // PER_REQUEST)
        asked, shown = [], []
        for _ in range(min(wanted, 64)):
            request, of = _request(pool, found, examples, sampling, number)
            asked.append(request)
            shown.append(of)
            number += 1
        before = len(found)
        for answer, of in zip((yield asked), shown, strict=True):
            if isinstance(answer, NoAnswer):
                refused[str(answer)] += 1
                continue
            for text in listed(answer):
                why = unfit(text) or ("an instruction like a known one" if known.nearest(text) else None)
                if why is None and len(found) < count:
                    known.add(text)
                    found.append((text, of))
                elif why:
                    refused[why] += 1
        dry = dry + 1 if len(found) == before else 0
    answers = yield [sampling.request(ask(text), n, 1) for n, (text, _) in enumerate(found)]
    made = []
    for (text, of), answer in zip(found, answers, strict=True):
        if isinstance(answer, NoAnswer) or (why := unusable(answer)):
            refused[str(answer) if isinstance(answer, NoAnswer) else str(why)] += 1
            continue
        made.append(
            Made(exchange(text, answer.strip(), of[0].record.origin, category=category), tuple(s.id for s in of))
        )
    return made, refused


def calls(seeds: Sequence[Seed], *, count: int = 100, **_: Any) -> int:
    """Return about how many requests there will be: every second instruction is new, and each of those is answered."""
    return count + 2 * -(-count // PER_REQUEST) if seeds else 0


def quoted(seeds: Sequence[Seed], **_: Any) -> int:
    """Return how many answers stand in later requests; the few instructions shown again are within the estimate."""
    return 0


def _request(
    pool: list[tuple[Seed, str]],
    found: list[tuple[str, tuple[Seed, ...]]],
    examples: int,
    sampling: Sampling,
    number: int,
) -> tuple[Request, tuple[Seed, ...]]:
    """Return the request for more instructions and the seeds it shows."""
    rng = np.random.default_rng([sampling.seed, number, 7])
    fresh = [found[i][0] for i in rng.permutation(len(found))[:_FRESH]]
    chosen = [pool[i] for i in rng.permutation(len(pool))[: examples - len(fresh)]]
    shown = [text for _, text in chosen] + fresh
    lines = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(shown, 1))
    said = _REQUEST.format(len(shown), PER_REQUEST, lines)
    return sampling.request(ask(said), number, 0), tuple(seed for seed, _ in chosen)


def unfit(text: str) -> str | None:
    """Return why an instruction is none a model of text can follow, or is too short, long or odd; None where it will do."""
    if why := unusable(text, least=3, most=150):
        return why
    if text.endswith((":", "：")):
        return "an instruction without what it speaks of"
    if _BEYOND.search(text):
        return "an instruction about what is no text"
    if not words(text)[0].isalpha() or (not text.isascii() and not text[0].isalpha()):
        return "an instruction that begins oddly"
    return None
