"""What the drivers share: a child that does one thing and may be killed, how it ended, and a hook that kills."""

import os
import signal
import traceback
from collections.abc import Callable

from tunesmith.training import disk


def forked(work: Callable[[], object], at=None) -> int:
    """Do `work` in a child, which hears of each moment of writing by `at`, and return its process number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if at is not None:
            disk.at = at
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """Return how a child ended: its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def dies_at(moment: int):
    """A hook that kills its process when it is called for the moment-th time."""
    left = [moment]

    def at(what: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    return at
