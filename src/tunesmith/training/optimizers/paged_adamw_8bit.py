"""AdamW with moments in 8 bits that leave the GPU's memory while it is needed otherwise, by bitsandbytes (see _bitsandbytes)."""

from tunesmith.training.optimizers import _bitsandbytes, adamw_8bit

STATE_BYTES = adamw_8bit.STATE_BYTES
PAGED = True


def check(device: str) -> None:
    """InputError where there is no CUDA device, or bitsandbytes is missing."""
    _bitsandbytes.check_paged("paged_adamw_8bit", device)


make = _bitsandbytes.adamw("PagedAdamW8bit")
