"""AdamW whose moments leave the GPU's memory while it is needed otherwise (Dettmers et al., 2023, arXiv 2305.14314), by bitsandbytes."""

from tunesmith.training.optimizers import _bitsandbytes

STATE_BYTES = 8  # two moments in fp32
PAGED = True


def check(device: str) -> None:
    """InputError where there is no CUDA device, or bitsandbytes is missing."""
    _bitsandbytes.check_paged("paged_adamw", device)


make = _bitsandbytes.adamw("PagedAdamW32bit")
