"""Which keys came before: sorted arrays of 16 bytes an entry, merged like the digits of a binary counter."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Seen:
    """Remembers the place where each 64-bit key was seen first."""

    def __init__(self) -> None:
        self._levels: list[tuple[Ints, Ints]] = []

    def earlier(self, keys: Ints, places: Ints) -> Ints:
        """Return, for each key, the place where it was seen first, or -1 where it is new; keys (N,), places (N,) not negative."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        new = np.ones(len(keys), dtype=np.bool_)
        new[1:] = ordered[1:] != ordered[:-1]
        heads = np.flatnonzero(new)
        unique, first = ordered[heads], places[order[heads]]  # stable: the head is the first of its key
        known = np.full(len(unique), -1, dtype=np.int64)
        for level_keys, level_places in self._levels:
            at = np.minimum(np.searchsorted(level_keys, unique), len(level_keys) - 1)
            hit = level_keys[at] == unique
            known[hit] = level_places[at[hit]]
        fresh = known < 0
        self._keep(unique[fresh], first[fresh])
        group = np.cumsum(new) - 1
        out = np.empty(len(keys), dtype=np.int64)
        out[order] = np.where(known[group] >= 0, known[group], np.where(new, -1, first[group]))
        return out

    def _keep(self, keys: Ints, places: Ints) -> None:
        if not len(keys):
            return
        while self._levels and len(self._levels[-1][0]) <= 2 * len(keys):
            more_keys, more_places = self._levels.pop()
            keys, places = np.concatenate([more_keys, keys]), np.concatenate([more_places, places])
            order = np.argsort(keys, kind="stable")
            keys, places = keys[order], places[order]
        self._levels.append((keys, places))
