"""Activation offload: what layers keep for the backward pass waits in the host's memory and comes back ahead of its turn.

Every decoder layer runs under saved-tensor hooks. Storages go out on a stream of their own while the next layers compute, into
page-locked memory, and come back on it while the layers behind theirs are in their backward. Only the copies' order is added: values,
and so gradients, are the same to the last bit. Parameters, buffers and views of them are never copied, small storages neither, and
a storage that several tensors or layers keep goes once. What the last layers keep is wanted at once, and stays.
"""

import weakref
from collections import deque
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tunesmith.model.activations import decoder_layers

AHEAD = 2  # layers whose copies are under way at a time, on the way out and back
LEAST = 2**18  # bytes of a storage: below, a copy's start costs more than the bytes are worth


def offload_activations(model: nn.Module) -> "Offload":
    """Let the model's decoder layers offload what they keep. Call it after they were fused and set to recompute.

    On a GPU the copies run beside the computation. On a CPU, which the tests use, they are made at once, into other memory.
    """
    offload = Offload(model)
    layers = decoder_layers(model)
    for i, layer in enumerate(layers):
        layer.forward = partial(offload.run, layer.forward, i >= len(layers) - AHEAD)
    return offload


class _Stored:
    """A storage's bytes: in the host's memory, and on the device once they are fetched."""

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self.there: Tensor | None = None
        self.arrived: torch.cuda.Event | None = None  # None: nothing to wait for

    def __del__(self) -> None:
        if (
            self.arrived is not None
        ):  # a backward broken off: its memory must not be used again before the copy into it is done
            torch.cuda.current_stream(self.there.device if self.there is not None else None).wait_event(self.arrived)


class _Call:
    """One layer's run: what it stored, and the run before it. It lives as long as something of it is kept."""

    def __init__(self, stays: bool, before: "weakref.ref[_Call] | None") -> None:
        self.stays, self.before = stays, before
        self.stored: list[weakref.ref[_Stored]] = []
        self.asked = False  # whether the layers behind were asked to come back


class _Kept(NamedTuple):
    """What autograd holds in a tensor's place; `tensor` where it stayed on the device, else a part of `stored`."""

    call: _Call
    tensor: Tensor | None
    stored: _Stored | None = None
    dtype: torch.dtype | None = None
    place: tuple[Any, ...] = ()  # offset, shape and strides in it


class Offload:
    """The copies under way. `copied` counts the bytes sent to the host so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.copied = model, 0
        self.device = next(model.parameters()).device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._fixed: set[int] | None = None
        self._last: weakref.ref[_Call] | None = None
        self._known: dict[int, tuple[StorageWeakRef, int, weakref.ref[_Stored]]] = {}
        self._sent: list[Tensor] = []  # of the layer at work
        self._leaving: deque[tuple[torch.cuda.Event | None, list[Tensor]]] = deque()

    def run(self, forward: Any, stays: bool, *args: Any, **kwargs: Any) -> Any:
        """Return forward(*args, **kwargs); what it keeps for the backward pass is sent to the host, unless it `stays`."""
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        call = _Call(stays, self._last)
        self._last = weakref.ref(call)
        try:
            with torch.autograd.graph.saved_tensors_hooks(partial(self._pack, call), self._unpack):
                found = forward(*args, **kwargs)
        except BaseException:  # out of memory, say: what is done next needs it
            self._leave(0)
            raise
        self._leave(AHEAD)
        return found

    def _pack(self, call: _Call, t: Tensor) -> _Kept:
        if call.stays or type(t) is not Tensor or t.layout != torch.strided or t.device != self.device:
            return _Kept(call, t)
        storage = t.untyped_storage()
        if storage.nbytes() < LEAST or self._is_fixed(storage):
            return _Kept(call, t)
        stored = self._find(storage, t._version)
        if stored is None:
            stored = self._send(storage)
            self._known[storage.data_ptr()] = (StorageWeakRef(storage), t._version, weakref.ref(stored))
            call.stored.append(weakref.ref(stored))
        return _Kept(call, None, stored, t.dtype, (t.storage_offset(), tuple(t.shape), t.stride()))

    def _is_fixed(self, storage: torch.UntypedStorage) -> bool:
        if self._fixed is None:  # at the first step: whatever moves the weights has done so
            held = (*self.model.parameters(), *self.model.buffers())
            self._fixed = {t.untyped_storage().data_ptr() for t in held if type(t.data) is Tensor}
        return storage.data_ptr() in self._fixed

    def _find(self, storage: torch.UntypedStorage, version: int) -> _Stored | None:
        """Return where the same bytes are already; an address may have become another storage's since."""
        seen = self._known.get(storage.data_ptr())
        return seen[2]() if seen is not None and not seen[0].expired() and seen[1] == version else None

    def _send(self, storage: torch.UntypedStorage) -> _Stored:
        here = torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)
        host = torch.empty(len(here), dtype=torch.uint8, pin_memory=self.stream is not None)
        self._copy(host, here)
        self._sent.append(here)
        self.copied += len(here)
        return _Stored(host)

    def _copy(self, to: Tensor, source: Tensor) -> torch.cuda.Event | None:
        """Copy behind all that was queued so far, beside what comes next; return when it is done."""
        if self.stream is None:
            to.copy_(source)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
        done: torch.cuda.Event = self.stream.record_event()
        return done

    def _leave(self, most: int) -> None:
        """Let go of all storages but those of the last `most` layers: the device waits for their copies, the host does not."""
        event = self.stream.record_event() if self.stream is not None else None
        self._leaving.append((event, self._sent))
        self._sent = []
        while len(self._leaving) > most:
            event, _ = self._leaving.popleft()
            if event is not None:
                torch.cuda.current_stream(self.device).wait_event(event)
        self._known = {at: seen for at, seen in self._known.items() if not seen[0].expired()}

    def _unpack(self, kept: _Kept) -> Tensor:
        if not kept.call.asked:
            kept.call.asked = True
            self._fetch_behind(kept.call)
        if kept.stored is None:
            assert kept.tensor is not None
            return kept.tensor
        there = self._fetch(kept.stored)
        if kept.stored.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(kept.stored.arrived)
            kept.stored.arrived = None
        found = torch.empty(0, dtype=kept.dtype, device=self.device)
        return found.set_(there.untyped_storage(), *kept.place)

    def _fetch_behind(self, call: _Call) -> None:
        """Begin to bring back what `call` and the AHEAD calls before it stored."""
        self._leave(0)
        found: _Call | None = call
        for _ in range(AHEAD + 1):
            if found is None:
                return
            for stored in filter(None, (ref() for ref in found.stored)):
                self._fetch(stored)
            found = found.before() if found.before is not None else None

    def _fetch(self, stored: _Stored) -> Tensor:
        # Its memory belongs to the stream that computes, which waits for the copy before it uses it, and so before it frees it.
        if stored.there is None:
            stored.there = torch.empty(len(stored.host), dtype=torch.uint8, device=self.device)
            stored.arrived = self._copy(stored.there, stored.host)
        return stored.there
