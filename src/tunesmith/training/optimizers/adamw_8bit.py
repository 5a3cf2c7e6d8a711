"""AdamW with moments in 8 bits (Dettmers et al., 2022, arXiv 2110.02861), by bitsandbytes."""

from collections.abc import Sequence

from tunesmith.training.optimizers import _bitsandbytes


def STATE_BYTES(name: str, shape: Sequence[int]) -> int:  # noqa: N802 (a number in the other optimizers)
    """Return about 2 bytes a number; 8 for small parameters."""
    return _bitsandbytes.state_bytes(2, shape)


def check(device: str) -> None:
    """InputError where bitsandbytes is missing or the device is neither a CPU nor CUDA's."""
    _bitsandbytes.check_package("adamw_8bit", device)


make = _bitsandbytes.adamw("AdamW8bit")
