"""What the losses over verdicts share: which way an answer is to go, and how much it counts."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

Weight = Annotated[float, Field(ge=0)]


def signed(values: Tensor, good: Tensor) -> Tensor:
    """Return the values (A,), of answers that were not found good with the other sign."""
    return values.where(good, -values)


def weighted(good: Tensor, like: Tensor, desirable: float, undesirable: float) -> Tensor:
    """Return what each answer counts by, (A,), of the dtype of `like`."""
    return good.to(like.dtype) * (desirable - undesirable) + undesirable
