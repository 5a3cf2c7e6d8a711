"""Who is asked: the model that writes and, where a way has one, the judge; each with a journal of its answers."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from tunesmith.arguments import Section, checked
from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._reply import spoken
from tunesmith.data.synthesis._rounds import Answer, NoAnswer, Request
from tunesmith.errors import InputError


class Price(Section):
    """What a million tokens cost, asked and answered, in any currency."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class Judge(Section):
    """The model that judges, where it is another than the one that writes."""

    model: str
    endpoint: str | None = None
    key_env: str | None = None
    price: Price | None = None

    @property
    def prices(self) -> dict[str, float] | None:
        """The price as a mapping, None where it was not given."""
        return None if self.price is None else self.price.model_dump()


class Reach(NamedTuple):
    """How an endpoint is asked: so many requests at a time, each with so many seconds."""

    concurrency: int
    timeout: float


def model_of(model: str, endpoint: str | None, key_env: str | None, reach: Reach, section: str = "synthesize") -> Any:
    """Return the model behind an address, or the local one, which is not loaded yet; InputError where there is none such."""
    if endpoint is not None:
        from tunesmith.data.synthesis._endpoint import Endpoint

        return Endpoint(endpoint, model, key_env, *reach, section)
    if key_env is not None:
        raise InputError(f"prepare: {section}.key_env is for an endpoint; a local model needs no key.")
    from tunesmith.data.synthesis._local import Local

    return Local(model)


def judge_of(given: Mapping[str, Any] | None, judges: bool, method: str) -> Judge | None:
    """Return the judge's section, None without one; InputError for a way that has no judge."""
    if given is None:
        return None
    if not judges:
        raise InputError(f"prepare: synthesize.judge is for a method that judges (ai_feedback), and {method} does not.")
    return checked(Judge, given, "prepare: synthesize.judge")


class Crew:
    """The model that writes and the judge (None: the same model), with their journals, which are opened with the first question."""

    def __init__(self, writer: Any, judge: Any, journal: str | None, method: str) -> None:
        self.writer, self.judge = writer, judge
        self.members = {False: (writer, Journal(_place(journal, writer.name, method, ""), writer.name))}
        self.members[True] = self.members[False]
        if judge is not None:
            self.members[True] = (judge, Journal(_place(journal, judge.name, method, ".judge"), judge.name))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers, each from the one it is for: the journal's, or asked now."""
        for judging, (model, journal) in self.members.items():
            missing = {r: None for r in requests if r.judge == judging and journal.get(r) is None}
            model.answer(list(missing), journal)
        found = [self.members[request.judge][1].get(request) for request in requests]
        return [NoAnswer("no answer") if one is None else spoken(one) for one in found]

    def names(self, judging: bool) -> dict[str, str]:
        """Return how the models sign what is made: {"model"}, and "judge" where there was one."""
        return {"model": self.writer.name} | ({"judge": (self.judge or self.writer).name} if judging else {})

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens were asked and answered by both."""
        used = [model.tokens for model in (self.writer, self.judge) if model is not None]
        return {name: sum(one[name] for one in used) for name in ("asked", "answered")}

    def close(self) -> None:
        """Bring the journals to the disk."""
        for journal in {id(journal): journal for _, journal in self.members.values()}.values():
            journal.close()


def _place(journal: str | None, model: str, method: str, mark: str) -> Path:
    if journal is not None:
        place = Path(journal).expanduser()
        return place.with_name(f"{place.stem}{mark}{place.suffix}") if mark else place
    from tunesmith.data.cache import folder_of_cache

    name = f"{method}{mark}-{hashlib.sha256(model.encode()).hexdigest()[:12]}.jsonl"
    return folder_of_cache().parent / "synthesis" / name
