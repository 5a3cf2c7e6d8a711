"""The probe: whether a way of running a model gives the log-probs of the model's own forward on each sequence alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.model import attention, virtual
from tunesmith.training.batch import FlatBatch

if TYPE_CHECKING:
    from tunesmith.model.policy import Policy

WINDOW = 16  # tokens; every longer attention window is this long while a model is probed
LENGTHS = (48, 28, 9, 6, 4)  # the last two continue the second
PARENTS = (-1, -1, -1, 1, 1)
WORDS = ("sliding_window", "attention_chunk_size")


def difference(policy: "Policy", whole: "Policy", own: str) -> str:
    """Return why `policy` cannot run as it is set to, or nothing; a flat policy that can has attention "flat" afterwards. Of one
    that is set to run without links none are tried.

    How far rounding alone takes log-probs differs from model to model, so it is measured: on average at most 3 times as far as
    the model is from itself under transformers' eager attention, or after a change of its input embeddings by a last bit
    (plus 1e-5 in fp32, 0.01 in bf16, for models whose own rounding is nothing). In training mode it is run too: what fails in
    training alone, a router whose code is for inference say, is found now and not at the first step.
    """
    model = whole.transformer
    if policy.flat and not _settable(model):
        return "it does not use transformers' attention interface"
    config, training = model.config.get_text_config(), whole.model.training
    limit = (getattr(config, "max_position_embeddings", None) or 1024) - virtual.count(whole.model)
    lengths = LENGTHS if limit >= LENGTHS[0] else tuple(max(1, n * limit // LENGTHS[0]) for n in LENGTHS)
    device, why = next(whole.parameters()).device, ""
    parents = (-1,) * len(lengths) if policy.flat and not policy.links else PARENTS
    batch = flat_batch(random_ids(whole, sum(lengths)).cpu(), lengths, parents).to(device)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), short_windows(model):
            whole.eval()
            wanted = _alone(whole, batch)
            allowed = 3 * _rounding(whole, batch, wanted, own) + (1e-5 if _precise(whole) else 0.01)
            if policy.flat:
                model.set_attn_implementation("flat")
            found = float((policy(batch) - wanted).abs().mean())
            if not found <= allowed:
                raise ValueError(f"log-probs differ by {found:.2g}, {allowed:.2g} is rounding")
            policy.train()
            policy(batch)
    except Exception as e:  # model code raises what it likes, and whatever it raises means: not this way
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        if isinstance(e, TypeError) and "'segments'" in why:
            why = "its layers do not pass on what flat attention needs to know"
    if why and policy.flat:
        model.set_attn_implementation(own)
    policy.train(training)
    return why


def check_causal(whole: "Policy") -> None:
    """InputError where what stands later changes the log-probs of what stands before: a model of BERT's kind, which cannot write."""
    ids = random_ids(whole, 12)
    other = torch.cat([ids[:-1], ids[:1]])
    training = whole.model.training
    whole.eval()
    with torch.no_grad():
        first, second = (whole(flat_batch(x.cpu(), (12,), (-1,)).to(ids.device))[:-1] for x in (ids, other))
    whole.train(training)
    # Causal, the two agree to the bit, but for mixtures: the last token's expert computes with others.
    if float((first - second).abs().max()) > (1e-4 if _precise(whole) else 0.05):
        raise InputError(
            f"the model ({type(whole.transformer).__name__}) looks at words before it predicts them, so it cannot learn to write; "
            "choose a causal language model."
        )


def random_ids(policy: "Policy", n: int) -> Tensor:
    """Return n random token ids on the policy's device, always the same ones."""
    vocabulary = policy.transformer.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(0))
    return ids.to(next(policy.parameters()).device)


def _settable(model: Any) -> bool:
    return bool(getattr(type(model), "_can_set_attn_implementation", lambda: True)())


def _precise(whole: "Policy") -> bool:
    return next(whole.parameters()).dtype in (torch.float32, torch.float64)


def _alone(whole: "Policy", batch: FlatBatch) -> Tensor:
    """Return the log-probs of the batch's targets with every sequence run alone, in the batch's order."""
    parts = batch.ids.cpu().split(batch.lengths)
    logps = []
    for ids, parent in zip(parts, batch.parents, strict=True):
        sequence = ids if parent < 0 else torch.cat([parts[parent], ids])
        found = whole(flat_batch(sequence, (len(sequence),), (-1,)).to(batch.ids.device))
        logps.append(found if parent < 0 else found[-len(ids) :])
    return torch.cat(logps)


def _rounding(whole: "Policy", batch: FlatBatch, wanted: Tensor, own: str) -> float:
    """Return how far the log-probs are from themselves, on average, where only rounding differs."""
    model = whole.transformer
    if own != "eager" and _settable(model):
        model.set_attn_implementation("eager")
        try:
            return float((_alone(whole, batch) - wanted).abs().mean())
        finally:
            model.set_attn_implementation(own)

    def last_bit(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        signs = torch.randint(0, 2, output.shape, device=output.device) * 2 - 1
        return output * (1 + signs * torch.finfo(output.dtype).eps).to(output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(last_bit)
    try:
        return float((_alone(whole, batch) - wanted).abs().mean())
    finally:
        handle.remove()


@contextmanager
def short_windows(model: Any) -> Iterator[None]:
    """Within it every attention window of the model longer than WINDOW is WINDOW tokens."""
    holders = {id(h): h for m in model.modules() for h in (m, getattr(m, "config", None)) if h is not None}
    changed = []
    for holder in holders.values():
        for word in WORDS:
            value = getattr(holder, word, None)
            if isinstance(value, int) and value > WINDOW:
                setattr(holder, word, WINDOW)
                changed.append((holder, word, value))
    try:
        yield
    finally:
        for holder, word, value in changed:
            setattr(holder, word, value)


def flat_batch(ids: Tensor, lengths: tuple[int, ...], parents: tuple[int, ...]) -> FlatBatch:
    """Return a batch, on the CPU, of segments of the given lengths in which every token that has one before it is a target."""
    starts = np.cumsum([0, *lengths])
    positions = np.concatenate(
        [np.arange(n) + (lengths[p] if p >= 0 else 0) for n, p in zip(lengths, parents, strict=True)]
    )
    before = np.arange(len(positions)) - 1
    for segment, parent in enumerate(parents):
        if parent >= 0:
            before[starts[segment]] = starts[parent + 1] - 1
    targets = np.flatnonzero(positions > 0)
    cu_seqlens = torch.from_numpy(starts.astype(np.int32))
    return FlatBatch(
        ids=ids,
        positions=torch.from_numpy(positions),
        cu_seqlens=cu_seqlens,
        target_index=torch.from_numpy(before[targets]),
        target_ids=ids[torch.from_numpy(targets)],
        weights=torch.ones(len(targets)),
        lengths=lengths,
        parents=parents,
        segments=attention.plan(lengths, cu_seqlens, parents),
        target_example=np.repeat(np.arange(len(lengths)), lengths)[targets],
    )
