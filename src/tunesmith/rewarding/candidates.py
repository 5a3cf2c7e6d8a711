"""Several answers to each prompt: a prompt runs once for all of its answers, and what was sampled is kept as it comes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.records import Record, Text
from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._rounds import CUT_OFF, NoAnswer, Request
from tunesmith.errors import InputError
from tunesmith.evaluation.items import Item, make_items

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Question:
    """A row's prompt: the item (its record, its messages, a reference if any), and the token ids that an answer follows."""

    item: Item
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said; whole: it ended by itself, not at the limit of tokens."""

    text: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: as tunesmith.model.generate.generate says."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def check(self, n: int) -> None:
        """InputError for the first value that is out of range, and for several answers that would all be the same."""
        from tunesmith.model.generate import check_sampling

        if n < 1:
            raise InputError(f"best_of is {n}; it must be at least 1.")
        drawn = (self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.repetition_penalty, self.stop)
        check_sampling(*drawn, seed=self.seed)
        if n > 1 and self.temperature == 0:
            raise InputError(
                f"the best of {n} takes a temperature above 0: at 0 every answer to a prompt is the same; leave it out for 1."
            )

    def seed_of(self, prompt: int, number: int) -> int:
        """Return the seed of answer `number` of a prompt: more answers, or other prompts beside it, change none."""
        return int(np.random.SeedSequence([self.seed, prompt, number]).generate_state(1)[0])


def questions(
    records: Sequence[Record], tokenizer: Any, context: int | None, every: bool = False
) -> tuple[list[Question], list[str]]:
    """Return what the rows ask, in their order, and notices of what was left out.

    A prompt that is there twice is asked once, and one that fills the model's `context` (in tokens) is left out; with `every` the
    one is asked again, and the other an InputError. InputError where nothing is left, and for plain text.
    """
    from tunesmith.model.generate import encode_prompts

    text = next((record for record in records if isinstance(record, Text)), None)
    if text is not None:
        raise InputError(f"{text.origin} is plain text, which asks nothing; give rows with prompts.")
    items = [item for item in make_items(records, tokenizer, unanswered=True) if item.prompt]
    chats = [(item.prompt, getattr(item.record, "tools", None)) for item in items]
    encoded = encode_prompts(tokenizer, chats, [item.record.origin for item in items])
    asked = [Question(item, tuple(ids)) for item, ids in zip(items, encoded, strict=True)]
    long = [question for question in asked if context is not None and len(question.ids) >= context]
    if long and (every or len(long) == len(asked)):
        raise InputError(
            f"{long[0].item.record.origin}: the prompt has {len(long[0].ids)} tokens, the model's context is {context}; shorten it."
        )
    if not asked:
        raise InputError("the data holds no prompt to answer.")
    if every:
        return asked, []
    fitting = [question for question in asked if context is None or len(question.ids) < context]
    first: dict[tuple[int, ...], Question] = {}
    once = [question for question in fitting if first.setdefault(question.ids, question) is question]
    notices = []
    if len(once) < len(fitting):
        notices.append(f"{len(fitting) - len(once)} of {len(asked)} prompts are there already; each is asked once")
    if long:
        notices.append(
            f"{len(long)} of {len(asked)} prompts fill the model's context of {context} tokens and are left out; the first is "
            f"{long[0].item.record.origin}"
        )
    return once, notices


class Kept:
    """A file of the answers sampled so far, in the cache's folder: an interrupted call goes on, another reward asks nothing anew."""

    def __init__(self, model: str, weights: str, sampling: Sampling) -> None:
        """`weights`: what tells them from others of the model's name."""
        from tunesmith.data.cache import folder_of_cache

        drawn = [sampling.top_p, sampling.top_k, sampling.repetition_penalty, sampling.stop]
        writer = json.dumps([model, weights, drawn])
        name = hashlib.sha256(writer.encode()).hexdigest()[:16]
        self.sampling = sampling
        try:
            file = folder_of_cache().parent / "sampling" / f"{name}.jsonl"
            self.journal = Journal(file, writer)
        except RuntimeError as e:
            raise InputError(
                "there is no home folder to keep answers in as they come; set TUNESMITH_CACHE to one."
            ) from e
        except InputError as e:
            raise InputError(
                f"answers are kept in {file} as they come, which cannot be used; set TUNESMITH_CACHE to another folder."
            ) from e

    def request(self, asked: Question, seed: int) -> Request:
        """Return what the answer is found by again."""
        prompt = " ".join(map(str, asked.ids))
        return Request((("prompt", prompt),), self.sampling.max_new_tokens, self.sampling.temperature, seed)


def sample(
    load: Callable[[], Any],
    tokenizer: Any,
    asked: Sequence[Question],
    n: int,
    sampling: Sampling,
    kept: Kept | None = None,
    told: Told = lambda said: None,
) -> list[list[Answer]]:
    """Return n answers to each question, drawn independently, (Q, n).

    `load` returns a model as generate's; it is called once, and only if something is not kept yet. Questions run in batches of like
    length, which depend on the call alone: one that was interrupted gives the same answers. A kept answer that is not whole has no
    text.
    """
    found: list[list[Answer]] = [[] for _ in asked]
    model = None
    batches = _batches(asked, n, sampling.max_new_tokens)
    for number, batch in enumerate(batches):
        told(f"sampling: {sum(map(len, batches[:number])) * n:,} of {len(asked) * n:,} answers")
        seeds = [[sampling.seed_of(row, k) for k in range(n)] for row in batch]
        before = None if kept is None else _read(kept, [asked[row] for row in batch], seeds)
        if before is None:
            model = load() if model is None else model
            before = _draw(model, tokenizer, [asked[row] for row in batch], seeds, sampling)
            if kept is not None:
                _keep(kept, [asked[row] for row in batch], seeds, before)
                before = (
                    _read(kept, [asked[row] for row in batch], seeds) or before
                )  # of two answers the first kept counts
        for row, answers in zip(batch, before, strict=True):
            found[row] = answers
    return found


def _batches(asked: Sequence[Question], n: int, new: int) -> list[list[int]]:
    """Return the questions' numbers, by length, so many together as generate runs at once; a question's answers stay together."""
    from tunesmith.model.generate import BATCH_TOKENS

    batches: list[list[int]] = []
    for row in sorted(range(len(asked)), key=lambda i: len(asked[i].ids)):
        if not batches or (len(batches[-1]) + 1) * n * (len(asked[row].ids) + new) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches


def _draw(
    model: Any, tokenizer: Any, asked: Sequence[Question], seeds: list[list[int]], sampling: Sampling
) -> list[list[Answer]]:
    from tunesmith.model.generate import context_length, generate

    n, context = len(seeds[0]), context_length(model)
    prompts = [list(question.ids) for question in asked for _ in range(n)]
    heard = [0] * len(prompts)  # tokens that ended no answer

    def hear(index: int, _: int) -> bool:
        heard[index] += 1
        return False

    texts = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        stop=sampling.stop,
        seed=[seed for own in seeds for seed in own],
        on_token=hear,
    )
    limits = [min(sampling.max_new_tokens, context - len(p) if context else sampling.max_new_tokens) for p in prompts]
    flat = [Answer(text.strip(), count < limit) for text, count, limit in zip(texts, heard, limits, strict=True)]
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def _read(kept: Kept, asked: Sequence[Question], seeds: list[list[int]]) -> list[list[Answer]] | None:
    """Return the answers of a batch, None unless all are there: a batch in part would be computed in another company."""
    found = []
    for question, own in zip(asked, seeds, strict=True):
        got = [kept.journal.get(kept.request(question, seed)) for seed in own]
        if any(one is None for one in got):
            return None
        found.append([Answer("", False) if isinstance(one, NoAnswer) else Answer(str(one), True) for one in got])
    return found


def _keep(kept: Kept, asked: Sequence[Question], seeds: list[list[int]], answers: list[list[Answer]]) -> None:
    for question, own, said in zip(asked, seeds, answers, strict=True):
        for seed, answer in zip(own, said, strict=True):
            kept.journal.keep(kept.request(question, seed), answer.text, None if answer.whole else CUT_OFF)


def fingerprint(*folders: str | None) -> str:
    """Return what changes when the weights in the folders do: names, sizes and times of their files; "" of what is no folder."""
    files = [f for folder in folders if folder for f in sorted(Path(folder).glob("*.safetensors")) if f.is_file()]
    said = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] if said else ""
