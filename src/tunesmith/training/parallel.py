"""Processes that train one model together: how they find each other, part a step's rows and add up what they found.

torchrun or accelerate launch starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. What is on a GPU is
added up by NCCL, everything else by gloo, over torch.distributed directly (docs/design/several-processes.md says why). Nothing
heavy is imported until there are several.
"""

import atexit
import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.errors import GuardStop, InputError, Interrupted, ProcessLost, SaidElsewhere

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # while the first process renders the data the others wait; a death is seen at once
LAST_WORD = timedelta(minutes=1)
BUCKET = 1 << 26  # bytes that are added up at a time: small tensors together, for each message has its price


@dataclass
class World:
    """The processes of a run, as one of them sees them. One alone has nobody to ask: its methods return what they were given.

    rank: which of them it is, 0 the first, which alone writes and speaks. size: how many they are. local_rank: which of its
    machine's. Every process must call the same methods in the same order. ProcessLost where another is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    def device(self, kind: str) -> str:
        """Return this process's device of a kind: cuda:1, say. InputError where there are fewer than processes."""
        if self.size == 1 or kind == "cpu":
            return kind
        import torch

        if kind != "cuda":
            raise InputError(f"train.device is {kind}, which several processes cannot share; start one process.")
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"more processes were started on this machine than it has GPUs ({torch.cuda.device_count()}); start one per GPU, "
                "or set train.device: cpu."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def share(self, lengths: "npt.NDArray[np.int64]") -> "npt.NDArray[np.int64]":
        """Return which of a step's rows, given their tokens, are this process's (maybe none); every row is exactly one's."""
        return deal(lengths, self.size)[self.rank]

    def seed(self, seed: int, step: int) -> int:
        """Return a seed for this process from `step` on."""
        import numpy as np

        return int(np.random.SeedSequence([seed, self.rank, step]).generate_state(1, np.uint64)[0])

    def sum_(self, tensors: Sequence["Tensor"]) -> None:
        """Add up each tensor over the processes, in place; the result has the same bits in all of them."""
        if self.size == 1:
            return
        import torch

        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._reduce(bucket[0])
                continue
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._reduce(flat)
            parts = flat.split([t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def most(self, *numbers: int) -> list[int]:
        """Return the largest of each number over the processes. Asked on the host: it never waits for a GPU."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers, dtype=torch.int64)
        with _lost():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return [int(n) for n in found]

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in their order. It is pickled, and read by processes of the same launch alone."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def broadcast(self, value: T) -> T:
        """Return the first process's value, pickled like gather's."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        held = [value]
        with _lost():
            dist.broadcast_object_list(held, group_src=0, group=self.group, device=torch.device("cpu"))
        return held[0]

    def broadcast_(self, tensors: Iterable["Tensor"]) -> None:
        """Overwrite tensors with the first process's."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        for t in tensors:
            whole = t.detach().contiguous()
            with _lost():  # as bytes: gloo does not know every dtype
                dist.broadcast(whole.reshape(-1).view(torch.uint8), group_src=0, group=self.group)
            if whole.data_ptr() != t.data_ptr():
                t.detach().copy_(whole)
            torch.autograd.graph.increment_version(t)  # which a collective does not: what is cached of it is stale

    def together(self, work: Callable[[], T]) -> T:
        """Return work(), done in every process at once. The InputError of any is every one's, and the first tells people of it.

        `work` must not speak with the other processes itself.
        """
        if self.size == 1:
            return work()
        found: list[T] = []
        error: InputError | None = None
        try:
            found = [work()]
        except InputError as e:
            error = e
        said = self.gather(None if error is None else str(error))
        wrong = next((rank for rank, sentence in enumerate(said) if sentence is not None), None)
        if wrong is None:
            return found[0]
        if self.rank > 0:
            raise SaidElsewhere(said[wrong]) from error
        if error is not None and wrong == 0:
            raise error
        raise InputError(f"process {wrong} of {self.size}: {said[wrong]}")

    def first(self, work: Callable[[], T]) -> T:
        """Return what work() returned in the first process; nobody else does it. InputError as in `together`."""
        found = self.together(lambda: work() if self.rank == 0 else None)
        return self.broadcast(found)  # type: ignore[return-value]

    def same(self, value: Any, what: str) -> None:
        """InputError where `value`, which stands for `what`, is not the same in every process."""
        found = self.gather(value)
        other = next((rank for rank, v in enumerate(found) if v != found[0]), None)
        if other is not None:
            sentence = f"process {other} of {self.size} has {what} than the first; give every process the same files."
            raise InputError(sentence) if self.rank == 0 else SaidElsewhere(sentence)

    def _reduce(self, tensor: "Tensor") -> None:
        import torch.distributed as dist

        with _lost():
            dist.all_reduce(tensor, group=self.group)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that this one was launched with, if any, until the end. InputError where the launch is not whole."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE says that this is one of {size} processes, but {', '.join(missing)} is not set; launch with torchrun or "
            "accelerate launch, or unset WORLD_SIZE."
        )
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    if gpus and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # before anything is looked at, which would open the first GPU everywhere
    with _lost():
        if not dist.is_initialized():  # by the program that calls this, or a run before
            dist.init_process_group("gloo", timeout=TIMEOUT)
            if not gpus:
                atexit.register(dist.destroy_process_group)  # its threads must not outlive the interpreter
        world = World(rank, size, local_rank, dist.new_group(backend=backend, timeout=TIMEOUT))
    try:
        yield world
    except (InputError, GuardStop, Interrupted) as e:
        if rank > 0 and (isinstance(e, SaidElsewhere) or not isinstance(e, InputError)):
            _wait_for_first(world.group)
        _leave(world)
        raise
    except Exception:
        if not gpus:  # to leave NCCL may wait for processes that are gone; the end of this one closes it as well
            _leave(world)
        raise
    _leave(world)


def _wait_for_first(group: Any) -> None:
    """Wait until the first process has told people what ended them all: a launcher stops the others when one ends."""
    import torch
    import torch.distributed as dist

    with suppress(RuntimeError):  # its connection closes
        work = dist.irecv(torch.zeros(1), group_src=0, group=group)
        assert work is not None
        work.wait(LAST_WORD)


def _leave(world: World) -> None:
    import torch.distributed as dist

    group, world.group = world.group, None
    with suppress(RuntimeError):  # the others may be gone
        dist.destroy_process_group(group)


def speaks() -> bool:
    """Return whether this process is the one that speaks to people: alone, or the first of those launched with it."""
    return int(os.environ.get("WORLD_SIZE") or 1) == 1 or int(os.environ.get("RANK") or 0) == 0


def neighbours() -> int:
    """Return how many processes of this launch share this machine and its memory, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def deal(lengths: "npt.NDArray[np.int64]", size: int) -> "list[npt.NDArray[np.int64]]":
    """Return the numbers of the rows that each of `size` processes gets, in order: the longest first, each to whom has fewest tokens.

    Deterministic: ties go to the earlier row and the lower rank. No process has more than 4/3 of what the best division would
    give it (Graham, 1969).
    """
    import numpy as np

    if size == 1:
        return [np.arange(len(lengths), dtype=np.int64)]
    parts: list[list[int]] = [[] for _ in range(size)]
    least = [(0, rank) for rank in range(size)]
    for row in np.argsort(-lengths, kind="stable").tolist():
        tokens, rank = least[0]
        parts[rank].append(row)
        heapq.heapreplace(least, (tokens + int(lengths[row]), rank))
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def checksum(tensors: Iterable["Tensor"]) -> int:
    """Return a number that depends on every bit of the tensors and on their order; waits for the device."""
    import torch

    sums = []
    for t in tensors:
        raw = t.detach().reshape(-1)
        if raw.storage_offset() * raw.element_size() % 8:
            raw = raw.clone()
        raw = raw.view(torch.uint8)
        whole = len(raw) // 8 * 8
        sums.append(raw[:whole].view(torch.int64).sum() + raw[whole:].sum(dtype=torch.int64))
    order = torch.arange(1, len(sums) + 1, device=sums[0].device)
    return int((torch.stack(sums) * order).sum())


def load(world: World, path: Path) -> tuple[dict[str, dict[str, "Tensor"]], dict[str, Any]]:
    """Return checkpoint.load(path) as the first process reads it: the others may be on machines that do not have the folder."""
    from tunesmith.training import checkpoint

    if world.size == 1:
        return checkpoint.load(path)
    import torch

    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    if world.rank == 0:
        tensors, state = checkpoint.load(path)
    forms = {file: {k: (t.shape, t.dtype) for k, t in group.items()} for file, group in tensors.items()}
    forms, state = world.broadcast((forms, state))
    if world.rank > 0:
        tensors = {f: {k: torch.empty(s, dtype=d) for k, (s, d) in group.items()} for f, group in forms.items()}
    world.broadcast_(t for file, group in forms.items() for t in (tensors[file][k] for k in group))
    return tensors, state


def _buckets(tensors: Sequence["Tensor"]) -> Iterator[list["Tensor"]]:
    """Yield the tensors in order, by dtype, in lists of at most 64 MiB (a larger tensor alone)."""
    by_dtype: dict[Any, list[Tensor]] = {}
    for t in tensors:
        by_dtype.setdefault(t.dtype, []).append(t)
    for alike in by_dtype.values():
        bucket: list[Tensor] = []
        used = 0
        for t in alike:
            if bucket and used + t.nbytes > BUCKET:
                yield bucket
                bucket, used = [], 0
            bucket.append(t)
            used += t.nbytes
        yield bucket


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:  # gloo's and NCCL's word for a connection that closed
        first = re.sub(r"^\[[^]]*\] *", "", str(e).strip() or type(e).__name__).splitlines()[0].split(". ")[0]
        raise ProcessLost(
            f"another process of this run has ended, or cannot be reached ({first[:160]}); see what it said, and continue with "
            "--resume."
        ) from e
