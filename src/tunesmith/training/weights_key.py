"""A name for a model as it stands: of all that its log-probs depend on but the tokens."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.model import quantize
from tunesmith.model.policy import Policy
from tunesmith.model.reference import off_is_the_start, what_changes

_NAMES = (
    "_name_or_path",
    "base_model_name_or_path",
    "inference_mode",
    "transformers_version",
)  # say where it came from
_CHUNK = 1 << 17  # words that stay in a processor's cache


def weights_key(policy: Policy) -> str:
    """Return a SHA-256 of all that the policy's log-probs depend on but the tokens: weights, buffers and config, adapter, versions, code.

    A fresh adapter, which changes nothing yet, is no part of it: the policy is its base then.
    """
    fresh = off_is_the_start(policy)
    left_out = {name for name, _ in what_changes(policy)} if fresh else set()
    held = [(name, p) for name, p in policy.named_parameters() if name not in left_out]
    tensors = [(_plain(name), t) for name, p in held for t in quantize.stored(p)]
    tensors += [(_plain(name), b) for name, b in policy.named_buffers()]
    adapters = {} if fresh else getattr(policy.model, "peft_config", {})
    facts = {
        "versions": {name: metadata.version(name) for name in ("tunesmith", "torch", "transformers", "peft")},
        "code": _code(),
        "device": next(policy.parameters()).device.type,
        "config": {k: v for k, v in policy.transformer.config.to_dict().items() if k not in _NAMES},
        "adapters": {k: {n: v for n, v in vars(c).items() if n not in _NAMES} for k, c in adapters.items()},
        "weights": sorted((name, str(t.dtype), list(t.shape), _checksum(t)) for name, t in tensors),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_said).encode()).hexdigest()


def _said(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _plain(name: str) -> str:
    """Return a parameter's name without what an adapter around its module adds."""
    return name.replace("base_model.model.", "", 1).replace(".base_layer", "")


def _code() -> str:
    """Return a digest of the code that forwards are made of."""
    package = Path(__file__).parents[1]
    files = [*sorted((package / "model").rglob("*.py")), package / "training" / "batch.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _checksum(t: Tensor) -> int:
    """Return a number that depends on every bit of a tensor and on its place; computed where the tensor is.

    A sum of products alone would not see the top bits of two words flip together: the signs of two weights.
    """
    raw = t.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(raw) % 8 or raw.storage_offset() % 8:
        raw = torch.cat([raw, raw.new_zeros(-len(raw) % 8)])
    factors = torch.arange(_CHUNK, device=t.device) * 2 + 1  # odd: no change of a number is lost
    total = torch.zeros((), dtype=torch.int64, device=t.device)
    for part in raw.view(torch.int64).split(_CHUNK):
        mixed = part * factors[: len(part)]
        total = total * 6364136223846793005 + mixed.bitwise_xor_(mixed >> 29).sum()
    return int(total)
