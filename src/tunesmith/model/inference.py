"""A model made ready to answer, and the verb `generate`."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import InputError
from tunesmith.model import loading

DEVICES = ("cpu", "cuda", "mps")
SMALL = 50_000_000  # parameters up to which fp32 costs nothing that is noticed


@dataclass
class Ready:
    """A model on its device in eval mode, its tokenizer, and notices for people."""

    model: Any
    tokenizer: Any
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """A model whose name, tokenizer and weight files were found good; no weight is loaded yet."""

    source: loading.ModelSource
    tokenizer: Any
    device: str
    notices: list[str]

    def load(self) -> Ready:
        """Load the weights, in the checkpoint's own dtype; small models on a CPU in float32."""
        model = loading.load_model(self.source)
        if self.device == "cpu" and sum(p.numel() for p in model.parameters()) <= SMALL:
            model = model.float()
        return Ready(model.to(self.device).eval().requires_grad_(False), self.tokenizer, self.notices)


def check(model: str, adapter: str | None = None, device: str | None = None) -> Checked:
    """Find a model, its tokenizer and a device (default: an accelerator if there is one); no weight is loaded yet."""
    import torch

    source = loading.resolve(model, adapter)
    loading.check_weights(source)
    tokenizer, notices = loading.load_tokenizer(source)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device is None:
        device = next(d for d in ("cuda", "mps", "cpu") if present[d])
    if not present.get(device, False):
        known = ", ".join(d for d in DEVICES if present[d])
        raise InputError(f'device "{device}" is not here; this machine has {known}.')
    return Checked(source, tokenizer, device, notices)
