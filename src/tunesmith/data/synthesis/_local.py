"""A model in this process: a folder, a hub id, a run or the starter, answering in batches."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import compress, groupby
from typing import Any

from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._rounds import CUT_OFF, Request
from tunesmith.errors import InputError

BATCH = 64  # answers between two writings of the journal: what an interruption may lose


class Local:
    """A local model; its weights are loaded when it is first asked."""

    def __init__(self, model: str) -> None:
        from tunesmith.model.inference import check

        self.checked, self.model = check(model), model
        self.loaded: Any = None
        self.policy: Any = None  # of the same weights, once log-probabilities are asked for
        self.tokens = {"asked": 0, "answered": 0}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def answer(self, requests: Sequence[Request], journal: Journal) -> None:
        """Answer what the journal does not hold yet, a batch at a time. A request beyond the model's context has no answer; it is an
        InputError where the first ones all are.
        """
        from tunesmith.model.generate import context_length

        if requests and self.loaded is None:
            self.loaded = self.checked.load()
        room = context_length(self.loaded) if requests else None
        for start in range(0, len(requests), BATCH):
            for _, group in groupby(requests[start : start + BATCH], _alike):
                alike, prompts = self._fitting(list(group), room, journal)
                self.tokens["asked"] += sum(map(len, prompts))
                if alike and alike[0].choices:
                    self._weigh(alike, prompts, journal)
                elif alike:
                    self._write(alike, prompts, room, journal)

    def _fitting(
        self, requests: list[Request], room: int | None, journal: Journal
    ) -> tuple[list[Request], list[list[int]]]:
        """Return the requests that leave room for an answer, with their tokens; of the others it is written down that they do not."""
        from tunesmith.model.generate import encode_prompts

        prompts = encode_prompts(self.checked.tokenizer, [(r.as_messages(), None) for r in requests])
        fits = [not room or len(prompt) < room for prompt in prompts]
        if not any(fits) and not journal.places:
            raise InputError(
                f"synthesize: a request to {self.model} has {len(prompts[0])} tokens, its context is {room}; use a model with a "
                "longer one, or shorter seeds."
            )
        for request, fit in zip(requests, fits, strict=True):
            if not fit:
                journal.keep(request, "", "a request longer than the model's context")
        return list(compress(requests, fits)), list(compress(prompts, fits))

    def _write(self, alike: list[Request], prompts: list[list[int]], room: int | None, journal: Journal) -> None:
        """Write down an answer to each of the requests, which are sampled alike."""
        from tunesmith.model.generate import generate

        heard = [0] * len(alike)  # tokens that ended no answer

        def hear(index: int, _: int) -> bool:
            heard[index] += 1
            return False

        with nullcontext() if self.policy is None else self.policy.plain_attention():
            answers = generate(
                self.loaded,
                self.checked.tokenizer,
                prompts,
                max_new_tokens=alike[0].max_tokens,
                temperature=alike[0].temperature,
                seed=[request.seed for request in alike],  # so an answer does not depend on the others of its batch
                on_token=hear,
            )
        for request, answer, prompt, count in zip(alike, answers, prompts, heard, strict=True):
            limit = min(request.max_tokens, room - len(prompt)) if room else request.max_tokens
            self.tokens["answered"] += count
            journal.keep(request, answer, CUT_OFF if count >= limit else None)

    def _weigh(self, alike: list[Request], prompts: list[list[int]], journal: Journal) -> None:
        """Write down the log-probability of each choice as the answer's beginning, to four places: below, its batch may show."""
        from tunesmith.model.policy import make_policy

        if self.policy is None:
            self.policy, _ = make_policy(self.loaded)
        choices = alike[0].choices
        said = self.checked.tokenizer(list(choices), add_special_tokens=False).input_ids
        if not all(said) or len({tuple(ids) for ids in said}) < len(choices):
            raise InputError(
                f"synthesize: the tokenizer of {self.model} cannot tell {' from '.join(choices)}; use another judge, or soft: false."
            )
        for request, logps in zip(alike, _logps(self.policy, prompts, said), strict=True):
            found = {choice: round(logp, 4) for choice, logp in zip(choices, logps, strict=True)}
            journal.keep(request, json.dumps(found))


def _alike(request: Request) -> tuple[int, float, tuple[str, ...]]:
    return request.max_tokens, request.temperature, request.choices


def _logps(policy: Any, prompts: list[list[int]], said: list[list[int]]) -> list[list[float]]:
    """Return log p(choice | prompt) in nats for each prompt and each choice's token ids; a prompt runs once for all its choices."""
    import numpy as np

    from tunesmith.data.records import Examples
    from tunesmith.training.scoring import example_nll

    rows = [(prompt, ids) for prompt in prompts for ids in said]
    ids = np.concatenate([np.array([*prompt, *choice], dtype=np.int32) for prompt, choice in rows])
    scored = np.concatenate([np.arange(len(p) + len(c)) >= len(p) for p, c in rows])
    offsets = np.cumsum([0, *(len(p) + len(c) for p, c in rows)])
    nll, _ = example_nll(policy, Examples(ids, scored, offsets, np.arange(len(rows)), []))
    found: list[list[float]] = (-nll).reshape(len(prompts), len(said)).tolist()
    return found
