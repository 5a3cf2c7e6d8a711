"""Activation offload: values stay the same to the last bit, less is kept on the device, nothing is sent twice or for nothing."""

import gc

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from builders import random_examples, tiny_model, with_lora
from tunesmith.model import attention, offload
from tunesmith.model.activations import checkpoint_activations, decoder_layers
from tunesmith.model.lora import fuse
from tunesmith.model.offload import AHEAD, Offload, offload_activations
from tunesmith.model.policy import Policy, make_policy
from tunesmith.training.batch import collate
from tunesmith.training.objectives import sft

LAYERS = 6
EXAMPLES = random_examples(n=6, low=10, high=40)


@pytest.fixture(autouse=True)
def _small_storages_count(monkeypatch):
    monkeypatch.setattr(offload, "LEAST", 512)


def policy_of(family="llama", adapter="lora", dropout=0.0, how="none"):
    model = tiny_model(family, num_hidden_layers=LAYERS, **_alternating(family))
    model = with_lora(model, 1, dropout) if adapter == "lora" else model
    fuse(model)
    attention.register()
    policy = Policy(model)
    policy.transformer.set_attn_implementation("flat")
    checkpoint_activations(model, how)
    return policy.train()


def _alternating(family):
    return {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)} if family == "gemma2" else {}


def gradients(policy):
    batch = collate(EXAMPLES, np.arange(6))
    policy.zero_grad()
    torch.manual_seed(3)
    loss = sft.loss(policy(batch), batch.weights)
    auxiliary = policy.take_auxiliary()
    (loss if auxiliary is None else loss + auxiliary).backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


@pytest.mark.parametrize("how", ["none", "selective", "full", 2])
@pytest.mark.parametrize(
    ("family", "adapter", "dropout"),
    [("llama", "lora", 0.3), ("llama", "full", 0.0), ("gemma2", "lora", 0.0), ("mixtral", "full", 0.0)],
)
def test_gradients_are_bit_equal(family, adapter, dropout, how):
    wanted = gradients(policy_of(family, adapter, dropout))
    policy = policy_of(family, adapter, dropout, how)
    copies = offload_activations(policy.model)
    for _ in range(2):  # what one step left does not disturb the next
        found = gradients(policy)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert copies.copied > 0


class Watched(Offload):
    """Keeps a weak reference to every storage that was sent, and the order in which storages go and come."""

    def __init__(self, model):
        super().__init__(model)
        self.storages, self.calls, self.events = [], [], []

    def _pack(self, call, t):
        if call not in self.calls:
            self.calls.append(call)
        return super()._pack(call, t)

    def _send(self, storage):
        self.storages.append((StorageWeakRef(storage), storage.nbytes()))
        stored = super()._send(storage)
        stored.number = len(self.storages) - 1
        self.events.append(("out", len(self.calls) - 1, stored.number))
        return stored

    def _fetch(self, stored):
        if stored.there is None:
            self.events.append(("in", None, stored.number))
        return super()._fetch(stored)


def watch(monkeypatch, policy):
    monkeypatch.setattr(offload, "Offload", Watched)
    return offload_activations(policy.model)


def test_what_was_sent_is_no_longer_on_the_device(monkeypatch):
    policy = policy_of()
    copies = watch(monkeypatch, policy)
    batch = collate(EXAMPLES, np.arange(6))
    logps = policy(batch)
    gc.collect()
    gone = sum(n for ref, n in copies.storages if ref.expired())
    assert gone / sum(n for _, n in copies.storages) > 0.9  # what lives on is of all layers: rotary's cosines and sines
    logps.sum().backward()


def test_parameters_and_what_several_keep_are_not_copied_twice(monkeypatch):
    policy = policy_of()
    copies = watch(monkeypatch, policy)
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    sent = []
    send = copies._send
    copies._send = lambda storage: sent.append(storage) or send(storage)  # kept alive: no address comes again
    policy(collate(EXAMPLES, np.arange(6))).sum().backward()
    addresses = [storage.data_ptr() for storage in sent]
    assert len(addresses) == len(set(addresses)) > LAYERS
    assert not own & set(addresses)
    assert all(storage.nbytes() >= offload.LEAST for storage in sent)


def test_the_last_layers_stay_and_the_others_come_back_before_their_turn(monkeypatch):
    policy = policy_of(how="full")  # one storage a layer: its input
    copies = watch(monkeypatch, policy)
    turns = []
    for i, layer in enumerate(decoder_layers(policy.model)):
        layer.register_full_backward_hook(lambda *_, i=i: turns.append((i, list(copies.events))) and None)
    policy(collate(EXAMPLES, np.arange(6))).sum().backward()
    out = {number: layer for kind, layer, number in copies.events if kind == "out"}
    assert set(out.values()) == set(range(LAYERS - AHEAD))
    back = [out[number] for kind, _, number in copies.events if kind == "in"]
    assert back == sorted(back, reverse=True)
    for (
        layer,
        seen,
    ) in turns:  # once a layer's backward is done, those of AHEAD layers before it are there, and not those of more
        there = {out[number] for kind, _, number in seen if kind == "in"}
        assert there == set(range(max(0, layer - AHEAD), LAYERS - AHEAD))


def test_a_storage_overwritten_in_between_is_sent_again():
    model = tiny_model("llama", num_hidden_layers=1)
    copies = Offload(model)

    def forward(x):
        doubled = x * 2
        first = doubled.exp()  # keeps its result
        with torch.no_grad():
            seen = first.clone()
        return first.sin(), seen

    x = torch.randn(2000, requires_grad=True)
    out, seen = copies.run(forward, False, x)
    out.sum().backward()
    assert torch.allclose(x.grad, 2 * seen * seen.cos())
    before = copies.copied
    copies.run(forward, False, x)
    assert copies.copied - before <= 2 * seen.nbytes


def test_a_forward_that_fails_leaves_nothing_behind(monkeypatch):
    policy = policy_of()
    copies = watch(monkeypatch, policy)
    batch = collate(EXAMPLES, np.arange(6))
    layer = decoder_layers(policy.model)[3]
    handle = layer.mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        policy(batch)
    gc.collect()
    assert all(ref.expired() for ref, _ in copies.storages)
    handle.remove()
    gradients(policy)


def test_nothing_is_sent_without_gradients():
    policy = policy_of()
    copies = offload_activations(policy.model)
    with torch.no_grad():
        policy(collate(EXAMPLES, np.arange(6)))
    assert copies.copied == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["none", "full"])
def test_on_a_gpu_the_bits_are_the_same_and_less_is_allocated(monkeypatch, how):
    monkeypatch.setattr(offload, "LEAST", 2**12)

    def measured(offloaded):
        torch.manual_seed(0)
        model = tiny_model(
            "llama", torch.bfloat16, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, head_dim=64
        ).cuda()
        policy, _ = make_policy(model)
        checkpoint_activations(model, how)
        if offloaded:
            offload_activations(model)
        policy.train()
        batch = collate(random_examples(n=64, low=40, high=80), np.arange(64)).to(torch.device("cuda"))
        for _ in range(3):
            policy.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            sft.loss(policy(batch), batch.weights).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), [p.grad.clone() for p in policy.parameters()]

    all_there, wanted = measured(False)
    less, found = measured(True)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert less < all_there
