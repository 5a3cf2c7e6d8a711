"""The pass of a reference over answers: log p of each of their scored tokens, kept on disk part by part as they are found."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.data.records import Examples
from tunesmith.evaluation.report_format import duration
from tunesmith.model.policy import Policy
from tunesmith.training import memory
from tunesmith.training.batch import FlatBatch, Indices, collate
from tunesmith.training.objective import looking
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.reference_store import Part, Store, Values, digests, fill, part_of, ranges

PART = 10.0  # seconds of work that a killed run loses at most
TOLD = 60.0  # seconds between words on how far it is
AHEAD = 4  # batches that a GPU is given before the host reads the first's results


class Asked(NamedTuple):
    """Some examples, and the micro-batches that this process runs of them; each make() makes them anew."""

    members: Indices
    make: Callable[[], Iterable[FlatBatch]]


class Lookup(NamedTuple):
    """What is known of some examples before the pass. names (E,): their digests; values (S,): log-probs, NaN where they are not known;
    found (E,): whether they are; todo: what this process has to run, `tokens` tokens of `answers` examples."""

    examples: Examples
    names: npt.NDArray[np.bytes_]
    values: Values
    found: npt.NDArray[np.bool_]
    todo: list[Asked]
    tokens: int
    answers: int

    def batches(self) -> Iterator[FlatBatch]:
        """Yield the micro-batches that hold what is not known; they are those that a run without a cache would make."""
        return (batch for piece in self.todo for batch in piece.make() if _unknown(batch, self.found))


def look_up(examples: Examples, asked: Sequence[Asked], parts: Sequence[Part], world: World = ALONE) -> Lookup:
    """Return what the first process's `parts` say of the examples, and what there is to do for the rest of those asked for."""
    names = digests(examples)
    values, found = world.first(lambda: fill(examples, names, parts))
    todo = [piece for piece in asked if not found[piece.members].all()]
    costs = [(tokens_of(batch), n) for piece in todo for batch in piece.make() if (n := _unknown(batch, found))]
    return Lookup(examples, names, values, found, todo, sum(t for t, _ in costs), sum(n for _, n in costs))


def log_probs(policy: Policy, known: Lookup, store: Store, clock: "Clock", world: World = ALONE) -> Values:
    """Return log p of each scored token of the examples, in nats, (S,) float32; NaN where it was neither asked for nor known.

    In eval mode, without gradients, and no random number is drawn. What is computed is put into the store every PART seconds, so that
    the next call goes on where a killed one was; at the end in one file.
    """
    with looking(policy):
        computed, done, files = _compute(policy, known, store, clock)
    own = torch.from_numpy(done.astype(np.int64))
    world.sum_([torch.from_numpy(computed), own])
    new = own.numpy() > 0
    if not new.any():
        return known.values
    whole = part_of(known.examples, np.flatnonzero(new), computed, known.names)
    kept, said = world.first(lambda: store.keep(whole))
    for sentence in said:
        clock.say(sentence)
    for file in files if kept else []:  # one file holds it all now
        file.unlink(missing_ok=True)
    return np.where(np.repeat(new, np.diff(known.examples.scored_offsets)), computed, known.values)


def _compute(
    policy: Policy, known: Lookup, store: Store, clock: "Clock"
) -> tuple[Values, npt.NDArray[np.bool_], list[Path]]:
    """Return this process's log-probs (S,), 0 for all other tokens; of which examples they are (E,); and the files that hold parts."""
    offsets = known.examples.scored_offsets
    computed, done = np.zeros(offsets[-1], dtype=np.float32), np.zeros(len(known.examples), dtype=np.bool_)
    files: list[Path] = []
    unkept: list[Indices] = []
    for batch, logps in _forward(policy, known, clock):
        of = batch.target_example  # an example's targets stand side by side
        begins = np.flatnonzero(np.diff(of, prepend=-1))
        members, counts = of[begins], np.diff(begins, append=len(of))
        new = ~known.found[members]
        fresh = np.repeat(new, counts)
        computed[ranges(offsets[members], counts)[fresh]] = logps[fresh]
        done[members[new]] = True
        unkept.append(members[new])
        if clock.part(tokens_of(batch)):
            file, _ = store.keep(part_of(known.examples, np.concatenate(unkept), computed, known.names))
            files += [] if file is None else [file]
            unkept.clear()
    return computed, done, files


def _forward(policy: Policy, known: Lookup, clock: "Clock") -> Iterator[tuple[FlatBatch, Values]]:
    """Yield each batch and its targets' log-probs (N,); a GPU is given the next batches before it is asked for the first's."""
    device = next(policy.parameters()).device
    waiting: deque[tuple[FlatBatch, Tensor]] = deque()
    for batch in known.batches():
        waiting.extend(_fitting(policy, batch, known.examples, clock))
        while len(waiting) > (AHEAD if device.type == "cuda" else 0):
            first, logps = waiting.popleft()
            yield first, logps.float().cpu().numpy()
    for first, logps in waiting:
        yield first, logps.float().cpu().numpy()


def _fitting(policy: Policy, batch: FlatBatch, examples: Examples, clock: "Clock") -> list[tuple[FlatBatch, Tensor]]:
    """Return the batch and its targets' log-probs; where memory runs out, those of two halves of its examples."""
    device, members = next(policy.parameters()).device, np.unique(batch.target_example)
    try:
        return [(batch, policy(batch.to(device)))]
    except (MemoryError, RuntimeError) as e:
        if not memory.ran_out(e) or len(members) == 1:
            raise
    # out of the except clause, so that its traceback does not keep the batch's tensors alive
    if device.type == "cuda":
        torch.cuda.empty_cache()
    clock.halved(batch)
    halves = [collate(examples, half, multiple=policy.multiple) for half in np.array_split(members, 2)]
    return [found for half in halves for found in _fitting(policy, half, examples, clock)]


def tokens_of(batch: FlatBatch) -> int:
    """Return the tokens that run, without what fills the batch up."""
    return sum(batch.lengths) - batch.padding


def _unknown(batch: FlatBatch, found: npt.NDArray[np.bool_]) -> int:
    """Return how many of a batch's examples are not found."""
    return int((~found[np.unique(batch.target_example)]).sum())


class Clock:
    """When a part is to be kept, and what to say of the time that is left; tokens: all that this process has to run."""

    def __init__(self, say: Callable[[str], None], tokens: int) -> None:
        self.say, self.tokens, self.done = say, tokens, 0
        self.began = self.kept = time.perf_counter()
        self.told = -math.inf
        self.small = False  # whether memory ran out

    def halved(self, batch: FlatBatch) -> None:
        """Say that memory ran out over a batch, once."""
        if not self.small:
            self.small = True
            self.say(
                f"the reference: memory ran out over a micro-batch of {tokens_of(batch):,} tokens; such ones are run in halves (the "
                "results are the same up to rounding)"
            )

    def part(self, tokens: int) -> bool:
        """Count tokens that were run; return whether a part is full."""
        self.done += tokens
        now = time.perf_counter()
        if now - self.kept < PART:
            return False
        self.kept = now
        if now - self.told >= TOLD and self.done < self.tokens:
            self.told = now
            left = (now - self.began) * (self.tokens - self.done) / self.done
            self.say(f"the reference: {self.done / self.tokens:.0%} done, about {duration(left)} left")
        return True
