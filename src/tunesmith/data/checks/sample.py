"""A fair sample of a stream whose length nobody knows, in bounded memory."""

from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Sample(Generic[T]):
    """A fair sample of at most `most` of what goes by (Vitter's algorithm R), the same at every run.

    Where the kept ones' sizes come to more than `room`, some are let go by lot and fewer are kept from then on.
    """

    def __init__(self, most: int, room: int = 1 << 24) -> None:
        self.most, self.seen = most, 0
        self._kept: list[tuple[int, T, int]] = []
        self._random = Random(0)
        self._left = room

    def see(self, record: T, size: int = 0) -> None:
        """Keep one of that size, or not."""
        self.seen += 1
        if len(self._kept) < self.most:
            self._kept.append((self.seen, record, size))
        elif (place := int(self._random.random() * self.seen)) < self.most:
            self._left += self._kept[place][2]
            self._kept[place] = (self.seen, record, size)
        else:
            return
        self._left -= size
        while self._left < 0 and len(self._kept) > 1:
            self._left += self._kept.pop(int(self._random.random() * len(self._kept)))[2]
            self.most = len(self._kept)

    def records(self) -> list[T]:
        """Return the sample in order."""
        return [record for _, record, _ in sorted(self._kept, key=lambda kept: kept[0])]
