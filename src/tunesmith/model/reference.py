"""The policy as the run began, beside the one that is trained: what KL terms, DPO and their like compare with.

Switching the adapter off gives it only where the adapter began as the identity on a base that nothing else changed. Otherwise, for
an adapter that is continued or began elsewhere (PiSSA, prompts), and for trained weights of the model itself, what the trained
weights were is kept as a frozen copy, which takes their place for as long as the reference is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tunesmith.evaluation.report_format import count, memory
from tunesmith.model import probe
from tunesmith.model.policy import Head, Policy
from tunesmith.training import parallel
from tunesmith.training.batch import FlatBatch

Copies = dict[str, Tensor]


class Reference:
    """Made before the first step, and before the checkpoint of a resumed run is read. bytes: what it keeps; sentence: for people.

    It runs in eval mode without gradients, through the same layers as the policy, so that before the first step its log-probs are
    the policy's own to the bit, and at any later step still the same.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.copies: Copies | None = None
        changing = [p for _, p in what_changes(policy)]
        size = sum(p.numel() * p.element_size() for p in changing)
        self.bytes, how = 0, "the model with its adapter switched off, which takes no memory"
        if not off_is_the_start(policy):
            self.copies = _copied(policy)
            self.bytes = size
            how = f"a frozen copy of the {count(sum(p.numel() for p in changing))} weights that are trained ({memory(size)})"
        self.sentence = f"the reference is {how}"

    def logps(self, batch: FlatBatch) -> Tensor:
        """Return the start's log p(target) for every target of the batch, float32, (N,)."""
        with self.start():
            return self.policy(batch)  # type: ignore[no-any-return]

    def hidden(self, batch: FlatBatch) -> Tensor:
        """Return the start's hidden state that predicts each target, (N,H)."""
        with self.start():
            return self.policy._hidden(batch)

    def head(self) -> Head:
        """Return the start's output layer, without gradients; the policy's own weights where those are not trained."""
        with self.start():
            found = self.policy.head  # a detached tensor goes on to hold these numbers when others are swapped in
            return found._replace(
                weight=found.weight.detach(), bias=None if found.bias is None else found.bias.detach()
            )

    def checksum(self) -> int:
        """Return a number for what is kept, for a checkpoint: a resumed run must have begun from the same. 0 where nothing is."""
        return parallel.checksum(self.copies.values()) if self.copies else 0

    @contextmanager
    def start(self) -> Iterator[None]:
        """Within it the policy is as the run began. Not between a forward and a backward that recomputes: leave it before."""
        policy, training = self.policy, self.policy.training
        own = policy._routed, policy._kept, policy.keep_hidden  # what the policy's own forward left is still to be read
        policy.eval()
        policy._routed, policy._kept, policy.keep_hidden = [], None, False
        try:
            with torch.no_grad(), _off(policy) if self.copies is None else _swapped(policy, self.copies):
                yield
        finally:
            policy._routed, policy._kept, policy.keep_hidden = own
            policy.train(training)


def what_changes(policy: Policy) -> list[tuple[str, Tensor]]:
    """Return what training changes: the trained parameters, and the number of ranks that AdaLoRA scales by."""
    return [(n, p) for n, p in policy.named_parameters() if p.requires_grad or ".ranknum." in n]


def _copied(policy: Policy) -> Copies:
    return {n: p.detach().clone() for n, p in what_changes(policy)}


@contextmanager
def _swapped(policy: Policy, copies: Copies) -> Iterator[None]:
    """Within it the named parameters have the values of `copies`. Their tensors stay the same objects: a graph that waits for its
    backward, and the optimizer, find them again with the values they had."""
    parameters = dict(policy.named_parameters())
    now = {n: parameters[n].data for n in copies}
    try:
        for n, copy in copies.items():
            parameters[n].data = copy
        yield
    finally:
        for n, values in now.items():
            parameters[n].data = values


@contextmanager
def _off(policy: Policy) -> Iterator[None]:
    with policy.model.disable_adapter():
        yield


@torch.no_grad()
def off_is_the_start(policy: Policy) -> bool:
    """Whether the switched-off adapter gives the start's log-probs to the bit, also when every trained weight is another.

    It is tried, on random tokens and with other numbers in the trained weights, so that no list of kinds has to be right.
    """
    if not hasattr(policy.model, "disable_adapter"):
        return False
    batch = _batch(policy)
    training = policy.training
    policy.eval()
    try:
        began = policy(batch)
        others = {n: p + 1 for n, p in what_changes(policy)}
        with _swapped(policy, others), _off(policy):
            return torch.equal(policy(batch), began)
    finally:
        policy.train(training)


def _batch(policy: Policy) -> FlatBatch:
    ids = probe.random_ids(policy, 24)
    return probe.flat_batch(ids.cpu(), (15, 9), (-1, -1)).to(ids.device)
