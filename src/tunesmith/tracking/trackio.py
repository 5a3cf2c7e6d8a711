"""trackio: a database in the Hugging Face cache (TRACKIO_DIR), or the Space or server its environment variables name."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from tunesmith.tracking._feed import Begin, Point, require


def check() -> None:
    """InputError where the library is absent."""
    require("trackio", "trackio")


def start(begin: Begin, *, project: str = "tunesmith", group: str | None = None) -> "_Run":
    """Return a sink for a trackio run, begun or continued. Nothing of the machine is sent."""
    import trackio

    name = f"{begin.name}-{begin.id}"  # trackio continues a run by its name
    with _unheard():
        opened = trackio.init(
            project,
            name,
            group=group,
            config=begin.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return _Run(opened, begin, f"trackio show --project {project}")


class _Run:
    def __init__(self, opened: Any, begin: Begin, where: str) -> None:
        self.run, self.id, self.where, self.last = opened, begin.id, where, begin.step

    def send(self, points: Sequence[Point]) -> None:
        for p in points:
            self.run.log(dict(p.values), step=p.step)
            self.last = p.step

    def end(self, state: str) -> None:
        self.run.log({"state": state}, step=self.last)
        with _unheard():
            self.run.finish()


def _unheard() -> contextlib.redirect_stdout[io.StringIO]:
    """trackio prints, and standard output is the verb's own (--json)."""
    return contextlib.redirect_stdout(io.StringIO())
