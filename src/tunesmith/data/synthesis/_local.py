"""A model in this process: a folder, a hub id, a run or the starter, answering in batches."""

from collections.abc import Sequence
from itertools import groupby
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
        self.tokens = {"asked": 0, "answered": 0}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def answer(self, requests: Sequence[Request], journal: Journal) -> None:
        """Answer what the journal does not hold yet, a batch at a time; requests beyond the model's context are InputErrors."""
        from tunesmith.model.generate import context_length, encode_prompts, generate

        if requests and self.loaded is None:
            self.loaded = self.checked.load()
        tokenizer = self.checked.tokenizer
        for start in range(0, len(requests), BATCH):
            for (most, temperature), group in groupby(requests[start : start + BATCH], _sampling):
                alike = list(group)
                prompts = encode_prompts(tokenizer, [(r.as_messages(), None) for r in alike])
                room, longest = context_length(self.loaded), max(map(len, prompts))
                if room and longest >= room:
                    raise InputError(
                        f"synthesize: a request to {self.model} has {longest} tokens, its context is {room}; use a model with a "
                        "longer one, or shorter seeds."
                    )
                heard = [0] * len(alike)  # tokens that ended no answer

                def hear(index: int, _: int, heard: list[int] = heard) -> bool:
                    heard[index] += 1
                    return False

                answers = generate(
                    self.loaded,
                    tokenizer,
                    prompts,
                    max_new_tokens=most,
                    temperature=temperature,
                    seed=[request.seed for request in alike],  # so an answer does not depend on the others of its batch
                    on_token=hear,
                )
                for request, answer, prompt, count in zip(alike, answers, prompts, heard, strict=True):
                    limit = min(most, room - len(prompt)) if room else most
                    self.tokens["asked"] += len(prompt)
                    self.tokens["answered"] += count
                    journal.keep(request, answer, CUT_OFF if count >= limit else None)


def _sampling(request: Request) -> tuple[int, float]:
    return request.max_tokens, request.temperature
