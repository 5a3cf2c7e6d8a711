"""What a run's reference says of its answers: computed once before the first step, and kept with the run and in the cache.

The policy as the run begins is the policy itself, in eval mode: no copy of it is needed. It runs the very micro-batches that the steps
and the evaluations will run, for the same answer in other company has other last bits, and before the first step every reward should
be 0 (docs/design/reference.md).
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tunesmith import run
from tunesmith.data.records import Examples
from tunesmith.model.lora import fuse
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training import make_objective, reference
from tunesmith.training.batch import FlatBatch, Indices
from tunesmith.training.objective import Objective
from tunesmith.training.parallel import ALONE, World
from tunesmith.training.plan import plan_steps
from tunesmith.training.reference_logps import Asked, Clock, Lookup, log_probs, look_up
from tunesmith.training.reference_store import Store, digests, fill, joined, part_of, read
from tunesmith.training.weights_key import weights_key

if TYPE_CHECKING:
    from tunesmith.training.prepare import Prepared

FILE = "reference.logps"  # in the run's folder


class Wanted(NamedTuple):
    """Some of a run's examples; steps: the rows of each step that it will take, None where all are held out, and used."""

    examples: Examples
    steps: Sequence[Indices] | None

    def used(self) -> Indices:
        """Return the examples that the run will use."""
        rows = np.arange(self.examples.rows) if self.steps is None else np.unique(np.concatenate(self.steps))
        return self.examples.members(rows)

    def asked(self, objective: Objective, policy: Policy, capacity: int, world: World) -> list[Asked]:
        """Return what this process will run of them."""
        if self.steps is None:
            return of_held_out(objective, policy, self.examples, capacity, world)
        return of_steps(objective, policy, self.examples, self.steps, capacity, world)


def for_run(
    prepared: "Prepared", folder: Path, world: World, say: Callable[[str], None], policy: Policy | None = None
) -> None:
    """Put into the run's examples what its reference says of them, if it has one: of another model before the policy is loaded
    (None), so that the two are never in memory at once; else of the policy, as the run begins."""
    option = reference.asked(prepared.config.objective)
    if option == reference.NONE or (option == reference.START) != (policy is not None):
        return
    train, examples = prepared.config.train, prepared.examples
    order = plan_steps(
        examples.row_lengths, prepared.rows, train.seed, train.tokens_per_step, train.batch_size, prepared.difficulty
    )
    sets = [Wanted(examples, [rows for _, rows in islice(order, prepared.steps)])]
    if prepared.validation is not None:
        sets.append(Wanted(prepared.validation, None))
    assert train.microbatch_tokens is not None
    provide = partial(
        _provide,
        sets,
        make_objective.make(prepared.config.objective),
        train.microbatch_tokens,
        folder / FILE,
        world,
        say,
    )
    if policy is not None:
        provide("the policy as it is now", lambda: policy)
        return
    device = world.device(prepared.machine.device)
    provide(reference.name(prepared.config.objective), lambda: world.together(lambda: _other(prepared, device)))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _other(prepared: "Prepared", device: str) -> Policy:
    """Return the other model, frozen, as the policy would be run."""
    from tunesmith.model.loading import load_model

    train, source = prepared.config.train, prepared.reference
    assert source is not None
    assert train.dtype is not None
    model = load_model(source, dtype=train.dtype, device=device)
    if train.fused:
        fuse(model)
    return make_policy(model.to(device).eval().requires_grad_(False))[0]


def _provide(
    sets: Sequence[Wanted],
    objective: Objective,
    capacity: int,
    file: Path,
    world: World,
    say: Callable[[str], None],
    who: str,
    make: Callable[[], Policy],
) -> None:
    """Put the log-probs of the reference, make(), among each set's constants. `file` keeps those that the run began with: one that is
    resumed reads them there, whatever has become of the cache, of this code and of the other model's weights."""
    kept = world.first(lambda: read(file))
    own = [fill(s.examples, digests(s.examples), [] if kept is None else [kept]) for s in sets]
    values = [v for v, _ in own]
    if not all(found[s.used()].all() for s, (_, found) in zip(sets, own, strict=True)):
        policy = make()
        store = Store(world.first(lambda: weights_key(policy)))
        parts = store.parts() if world.rank == 0 else []
        known = [look_up(s.examples, s.asked(objective, policy, capacity, world), parts, world) for s in sets]
        _tell(say, who, store, known, world)
        clock = Clock(say, sum(k.tokens for k in known))
        values = [log_probs(policy, k, store, clock, world) for k in known]
        whole = joined([part_of(s.examples, s.used(), v, k.names) for s, v, k in zip(sets, values, known, strict=True)])
        world.first(lambda: run.write_bytes(file, b"".join(whole.pieces())))
    for s, v in zip(sets, values, strict=True):
        s.examples.constants["reference"] = v


def _tell(say: Callable[[str], None], who: str, store: Store, known: Sequence[Lookup], world: World) -> None:
    """Say what the pass costs, before it begins."""
    mine = sum(k.tokens for k in known), sum(k.answers for k in known)
    tokens, answers = np.sum(world.gather(mine), axis=0).tolist()
    found = sum(int(k.found.sum()) for k in known)
    where = "nowhere, for there is no home folder" if store.folder is None else str(store.folder)
    if not answers:
        say(f"the reference, {who}: its log-probs of {found:,} answers were found in {where}")
        return
    there = f", where those of {found:,} more were found" if found else ""
    say(
        f"the reference, {who}, runs once over {answers:,} answers ({tokens:,} tokens, prompts that answers share counted once); its "
        f"log-probs are kept in {where}{there}"
    )


def of_steps(
    objective: Objective,
    policy: Policy,
    examples: Examples,
    steps: Iterable[Indices],
    capacity: int,
    world: World = ALONE,
) -> list[Asked]:
    """Return this process's share of each step's rows, as the loop parts them; rows that came before are left out."""
    seen, lengths, found = np.zeros(examples.rows, dtype=np.bool_), examples.row_lengths, []
    for rows in steps:
        rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        rows = rows[~seen[rows]]
        seen[rows] = True
        mine = rows[world.share(lengths[rows])]
        if len(mine):
            found.append(Asked(examples.members(mine), partial(objective.batches, examples, mine, capacity, policy)))
    return found


def of_held_out(
    objective: Objective, policy: Policy, examples: Examples, capacity: int, world: World = ALONE
) -> list[Asked]:
    """Return this process's share of all rows' micro-batches, as an evaluation parts them."""
    rows = np.arange(examples.rows)

    def make() -> Iterator[FlatBatch]:
        return islice(objective.batches(examples, rows, capacity, policy), world.rank, None, world.size)

    return [Asked(examples.members(rows), make)]
