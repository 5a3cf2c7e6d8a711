"""Rows of a data set of the Hugging Face hub, through `datasets`, which keeps what it fetched on the disk."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tunesmith.data.places import Place
from tunesmith.data.readers.json_rows import Found
from tunesmith.data.readers.packed import first_line
from tunesmith.errors import InputError

STREAMED = 100_000  # rows; more are fetched as a whole set, which then lies on the disk


class HubRows:
    """The rows of one split. Where only its first rows are meant they alone are fetched, as a stream."""

    whole = False

    def __init__(self, place: Place) -> None:
        self.place, self._rows, self.end = place, None, 0

    def rows(self) -> Found:
        """Yield (number, row, place from 0); InputError where the hub does not give them."""
        with self._one_sentence():
            for at, row in enumerate(self.opened()):
                yield at + 1, dict(row), at

    def opened(self) -> Any:
        """Return the split as `datasets` gives it: a sequence, memory-mapped; or what can only be gone over."""
        if self._rows is None:
            self._rows = self._open()
        return self._rows

    def _open(self) -> Any:
        from tunesmith.model.loading import offline, unreachable

        place = self.place
        try:
            import datasets
        except ImportError:
            raise InputError(
                f'"{place.hub}" is no local file, and reading it from the hub needs one more package: '
                "pip install 'tunesmith[hub]'."
            ) from None
        cut = place.cut
        first = cut is not None and not cut.counted and 0 < (cut.bounds()[1] or 0) <= STREAMED
        with self._one_sentence(), offline() if (away := unreachable(place.hub)) else contextlib.nullcontext():
            return datasets.load_dataset(place.hub, place.config, split=place.split, streaming=first and not away)

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        place = self.place
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of many backends: the remedy is in the first line of whatever they raise
            config = f', config "{place.config}"' if place.config else ""
            remedy = "Check the name and the network, or give a local file."
            if "config" in str(error).lower() and not place.config:
                remedy = f"Say which one you mean: {place.hub}:CONFIG."
            raise InputError(
                f'"{place.hub}" is no local file, and the hub did not give it (split "{place.split}"{config}): '
                f"{first_line(error)}. {remedy}"
            ) from None
