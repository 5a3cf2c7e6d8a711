"""document_qa: questions about a document and answers that stand in it, from plain text."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from tunesmith.data.content import said
from tunesmith.data.synthesis._check import grounded, unusable
from tunesmith.data.synthesis._novel import Known
from tunesmith.data.synthesis._reply import pairs
from tunesmith.data.synthesis._rounds import Chain, Made, Refused, Rounds, Sampling, Seed, ask, together
from tunesmith.data.synthesis._turns import exchange

NEW_PROMPTS = True  # a prompt like one there is makes no row
_QUESTION = (
    "Write {} questions that the passage below answers, each with its answer in a sentence or two that uses nothing but the passage. "
    "A question must make sense to someone who has not the passage before them. Reply with JSON alone: "
    '[{{"question": "...", "answer": "..."}}, ...]\n\n<passage>\n{}\n</passage>'
)
# Who is asked has no passage before them.
_POINTS = re.compile(
    r"\b(?:the|this) (?:passage|excerpt|paragraph)\b|\b(?:in|according to) (?:the|this) (?:text|document|article)\b"
    r"|\b(?:mentioned|described|stated|given) (?:above|here)\b",
    re.IGNORECASE,
)


def make(
    seeds: Sequence[Seed],
    sampling: Sampling,
    *,
    questions: Annotated[int, Field(ge=1, le=20)] = 3,
    passage: Annotated[int, Field(ge=200, le=20_000)] = 1500,
    least_grounded: Annotated[float, Field(ge=0, le=1)] = 0.6,
    with_passage: bool = False,
) -> Rounds:
    """Return chats of questions and answers about passages of at most `passage` characters of the seeds' texts.

    An answer must have the share `least_grounded` of its words (small ones left out) in the passage; a question like another
    of its passage is left out. with_passage: the question stands below the passage, for reading instead of remembering.
    """
    return together(
        _chain(seed, part, n, sampling, questions, least_grounded, with_passage)
        for seed in seeds
        for n, part in enumerate(passages(said(seed.record), passage))
    )


def calls(seeds: Sequence[Seed], *, passage: int = 1500, **_: Any) -> int:
    """Return the most requests there will be."""
    return sum(1 for seed in seeds for _ in passages(said(seed.record), passage))


def quoted(seeds: Sequence[Seed], **_: Any) -> int:
    """Return how many answers stand in later requests: none."""
    return 0


def passages(text: str, most: int) -> Iterator[str]:
    """Yield the text in parts of at most `most` characters, cut between paragraphs, else sentences, else words; none is lost."""
    pieces = re.split(r"(?<=\n\n)|(?<=[.!?]\s)", text)
    part = ""
    for piece in pieces:
        while len(piece) > most:
            cut = piece.rfind(" ", 1, most) + 1 or most
            pieces_now, piece = piece[:cut], piece[cut:]
            if part.strip():
                yield part.strip()
            part = ""
            yield pieces_now.strip()
        if len(part) + len(piece) > most and part.strip():
            yield part.strip()
            part = ""
        part += piece
    if part.strip():
        yield part.strip()


def _chain(
    seed: Seed, part: str, n: int, sampling: Sampling, questions: int, least: float, with_passage: bool
) -> Chain:
    reply = yield sampling.request(ask(_QUESTION.format(questions, part)), seed.id, n)
    found = pairs(reply)
    if found is None:
        return Refused("an answer that is no list of questions and answers")
    made, known, why = [], Known(), "no pair"
    for asked, answered in found:
        reason = unusable(asked, least=3, most=100) or unusable(answered)
        if reason is None and grounded(answered, part) < least:
            reason = "an answer that is not in the passage"
        if reason is None and not with_passage and _POINTS.search(asked):
            reason = "a question that points to the passage"
        if reason is None and known.nearest(asked):
            reason = "a question asked twice"
        if reason:
            why = reason
            continue
        known.add(asked)
        prompt = f"{part}\n\n{asked}" if with_passage else asked
        made.append(Made(exchange(prompt, answered, seed.record.origin), (seed.id,), {"passage": n + 1}))
    return made or Refused(why)
