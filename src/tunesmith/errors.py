"""The errors people see. Each carries one sentence that names what was found, where, and the remedy."""

import difflib
import signal
from collections.abc import Iterable


class InputError(Exception):
    """The input is wrong (exit code 2): a file, a row, a key, a value or a combination of them."""


class SaidElsewhere(InputError):  # noqa: N818 (InputError's kind of name, and its exit code)
    """An InputError of which another process of the run tells people."""


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal asked the run to stop; its checkpoint is written unless its loss was beyond bounds (exit code 128 + number)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class ProcessLost(Exception):  # noqa: N818 (nobody's error that is known here)
    """Another process of the run ended before it was done (exit code 1); its checkpoints are kept."""


class GuardStop(Exception):  # noqa: N818 (not an error: it did what it is for)
    """A guard stopped the run (exit code 3): a loss that is no number, say. The last good state is kept."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the option nearest in spelling, else ' Known: a, b, c.' (at most 12)."""
    known = sorted(set(options))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f' Did you mean "{near[0]}"?'
    return f" Known: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}." if known else ""
