"""One optimizer step: the rows' micro-batches forward and backward, the guard's verdict, clip, update. It never waits for the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from tunesmith.data.records import Examples
from tunesmith.errors import InputError
from tunesmith.model.policy import Policy
from tunesmith.training import memory
from tunesmith.training.batch import FlatBatch, Indices
from tunesmith.training.companions import Companion
from tunesmith.training.guard import GOOD, Guard
from tunesmith.training.in_backward import InBackward
from tunesmith.training.masters import Masters, Optimizers, update
from tunesmith.training.objective import Objective, Totals
from tunesmith.training.parallel import ALONE, World


class Stepper:
    """Steps of a policy over examples in micro-batches of `capacity` tokens, which are halved where memory runs out.

    optimizer: one; or one for each master, which then are stepped inside the backward pass. clip_norm: False does not clip. `say` is
    told sentences for people.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        masters: Masters,
        optimizer: Optimizers,
        guard: Guard,
        examples: Examples,
        capacity: int,
        clip_norm: float | Literal[False],
        say: Callable[[str], None],
        world: World = ALONE,
        companions: Sequence[Companion] = (),
    ) -> None:
        self.companions = companions
        self.policy, self.objective, self.masters, self.optimizer, self.guard = (
            policy,
            objective,
            masters,
            optimizer,
            guard,
        )
        self.examples, self.capacity, self.clip_norm, self.say = examples, capacity, clip_norm, say
        self.world = world
        self.device = next(policy.parameters()).device
        self.facts: dict[str, Any] = {}  # what the objective and the companions say of the last step
        self._at: FlatBatch | None = None  # the micro-batch under way
        self._looked = False  # whether the objective has seen the whole step
        self.each = list(optimizer.values()) if isinstance(optimizer, Mapping) else [optimizer]
        self.in_backward: InBackward | None = None
        if isinstance(optimizer, Mapping):
            self.in_backward = InBackward(masters, optimizer)
            self.in_backward.make_state()

    def batches(self, rows: Indices) -> list[FlatBatch]:
        """Return the micro-batches of a step over `rows`, on the host; for a GPU in page-locked memory."""
        made = self.objective.batches(self.examples, rows, self.capacity, self.policy)
        if self.device.type != "cuda":
            return list(made)
        torch.cuda.set_device(self.device)  # of this thread, whose pinned memory would else belong to the first GPU
        return [b.pin_memory() for b in made]

    def step(self, rows: Indices, batches: Sequence[FlatBatch], totals: Totals, rate: float, number: int) -> Tensor:
        """Make step `number` (from 1) over `rows`, laid out in `batches`; return its loss, gradient norm and verdict as a float32 (3,).

        The loss is the mean over the whole step, which has this process's rows and those of the others, whatever the micro-batches;
        `totals` is what it is divided by.
        """
        for group in (group for optimizer in self.each for group in optimizer.param_groups):
            group["lr"] = rate * group["ratio"]
        self.policy.router_load, self._looked = None, False
        loss = self._accumulate(rows, batches, totals)
        if self.in_backward is not None:
            norm, skipped = self.in_backward.finish()
            verdict = self.guard.judge_late(loss, norm, skipped)
            self.facts = self.objective.facts()
        else:
            norm, verdict = self._update(loss, rate, number)
        return torch.stack((loss.float(), norm.float(), verdict))

    def _update(self, loss: Tensor, rate: float, number: int) -> tuple[Tensor, Tensor]:
        """Step the masters with the gradients they have; return the gradients' norm and the verdict."""
        assert not isinstance(self.optimizer, Mapping)
        self.masters.fill_missing_grads()
        grads = self.masters.grads()
        self.world.sum_([loss, *grads, *(found for sums in self._sums() for found in sums)])
        norm, divisor = get_total_norm(grads) / self.guard.scale, self.guard.scale
        if self.clip_norm:
            # torch's clip_grad_norm_ multiplies by clip / (norm + 1e-6) where that is below 1; a large norm is also unscaled here
            divisor = divisor * ((norm + 1e-6) / self.clip_norm).clamp(min=1)
        verdict = self.guard.judge(loss, norm)
        skipped = (verdict != GOOD).float()
        update(self.optimizer, grads, divisor, skipped, keep=bool(self.companions))
        told = [self.objective.facts(), *(c.after_step(number, rate, skipped) for c in self.companions)]
        self.facts = {k: v for facts in told for k, v in facts.items()}
        self.masters.refresh()
        return norm, verdict

    def _sums(self) -> list[tuple[Tensor, ...]]:
        return [self.objective.sums, *(companion.sums for companion in self.companions)]

    def _accumulate(self, rows: Indices, batches: Sequence[FlatBatch], totals: Totals) -> Tensor:
        """Leave the step's gradients in the masters and return its loss; begun anew in smaller parts where memory runs out."""
        random = _random_state(self.device)
        while True:
            try:
                return self._gradients(batches, totals)
            except (MemoryError, RuntimeError) as e:
                if not memory.ran_out(e):
                    raise
            # out of the except clause, so that its traceback does not keep the step's tensors alive
            self.masters.zero_grad()
            self._not_begun()
            self._shrink(self._at or batches[0])
            _set_random_state(self.device, random)
            batches = self.batches(rows)

    def _gradients(self, batches: Sequence[FlatBatch], totals: Totals) -> Tensor:
        self.masters.zero_grad()
        self._at = max(batches, key=lambda batch: sum(batch.lengths), default=None)
        total = torch.zeros((), device=self.device)
        trained = [batch for batch in batches if batch.trained]
        if self.policy.router is not None and (len(trained) > 1 or self.world.size > 1):
            self._count_routed(trained)
        if self.world.size == 1 or not self._looked:  # of several processes only this one may have begun anew
            self.objective.first(self.policy, batches, totals, self.world)
            self._looked = True
        for found in (found for sums in self._sums() for found in sums):
            found.zero_()
        for on_host in trained:
            self._at, batch = on_host, on_host.to(self.device)
            loss = self.objective.loss(self.policy, batch, totals)
            total += loss.detach()
            # trained, but not part of the loss that is reported: the experts' balance, and what companions add
            added = [c.loss(self.policy, batch) for c in self.companions]
            loss = sum((a / totals.scored for a in added if a is not None), loss)
            balance = self.policy.take_auxiliary()
            loss = loss if balance is None else loss + balance
            if self.in_backward is not None and on_host is trained[-1]:
                self.in_backward.arm(self.guard.foresee(total))
            loss.backward(self.guard.scale.to(loss.dtype))
        if self.world.rank == 0:  # once for all processes
            for term in (c.regularizer() for c in self.companions):
                if term is not None:
                    term.backward(self.guard.scale.to(term.dtype))
        self._at = None
        return total

    def _count_routed(self, batches: Sequence[FlatBatch]) -> None:
        """Tell the routers what the whole step sends to each expert; once a step, whatever is begun anew in this process alone."""
        if self.policy.router_load is not None:
            return
        counts = torch.zeros(0, dtype=torch.int64, device=self.device)
        if batches:
            counts = self.policy.router_counts(batch.to(self.device) for batch in batches)
        (size,) = self.world.most(len(counts))
        if not len(counts):
            counts = counts.new_zeros(size)
        self.world.sum_([counts])
        self.policy.router_load = counts

    def _not_begun(self) -> None:
        """InputError where the step has changed parameters in its backward pass already, and cannot be made again."""
        if self.in_backward is None:
            return
        if self.in_backward.begun:
            raise InputError(
                "memory ran out within a backward pass that had changed weights (train.optimizer_in_backward), so the step cannot be "
                "made again in smaller parts: begin the run anew with a lower train.microbatch_tokens."
            )
        self.in_backward.arm(None)

    def _shrink(self, batch: FlatBatch) -> None:
        """Halve the micro-batches, as far as the longest row of the one that did not fit lets them; InputError where it is alone."""
        lengths = batch.lengths[:-1] if batch.padding else batch.lengths  # padding is no row, and cannot be halved
        tokens = sum(lengths)
        longest = max(n + (lengths[p] if p >= 0 else 0) for n, p in zip(lengths, batch.parents, strict=False))
        smaller = max(min(tokens, self.capacity) // 2, longest)
        alone = batch.answers is not None and len(batch.answers.rows) == 1  # a row's answers stay together
        if alone or smaller >= tokens:
            raise InputError(
                f"memory does not suffice for a step over one row of {tokens:,} tokens{self._where(batch)}: lower train.max_length, set "
                "train.activation_checkpointing: full, or take a smaller model or an adapter."
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.capacity = smaller
        self.say(
            f"memory ran out over a micro-batch of {tokens:,} tokens; the step is done again and the run goes on with at most "
            f"{smaller:,} (the results are the same)"
        )

    def _where(self, batch: FlatBatch) -> str:
        if not len(self.examples.origins) or not len(batch.target_example):
            return ""
        return f" ({self.examples.origins[self.examples.record[batch.target_example[0]]]})"


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
