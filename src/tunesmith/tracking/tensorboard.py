"""TensorBoard: event files in the run's own folder, written by tensorboardX, which needs no TensorFlow and no TensorBoard."""

import os
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from tunesmith.tracking._feed import Begin, Point, require


def check() -> None:
    """InputError where the library is absent."""
    require("tensorboard", "tensorboardX")


def start(begin: Begin) -> "_Files":
    """Return a sink that writes RUN/tensorboard; what an earlier part of the run wrote beyond `begin.step` is made void."""
    return _Files(begin)


class _Files:
    def __init__(self, begin: Begin) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # itself: SummaryWriter's thread can hang at exit
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import text

        self.last = begin.step
        folder = begin.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self.id, self.where = begin.id, f"tensorboard --logdir {folder}"
        self.event: Any = Event
        # two parts of a run may begin in the same second, which is all that is in the file's own name
        self.writer = EventsWriter(str(folder / "events"), f".{begin.step}.{os.getpid()}")
        if not begin.fresh:
            again = SessionLog(status=SessionLog.START)
            self.writer.write_event(Event(wall_time=time.time(), step=begin.step + 1, session_log=again))
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in begin.config.items())
        self._write(begin.step, time.time(), text("config", f"<table>{rows}</table>"))
        self.writer.flush()

    def _write(self, step: int, at: float, summary: Any) -> None:
        self.writer.write_event(self.event(wall_time=at, step=step, summary=summary))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        for p in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in p.values.items()]
            self._write(p.step, p.time, Summary(value=values))
            self.last = p.step
        self.writer.flush()

    def end(self, state: str) -> None:
        from tensorboardX.summary import text

        self._write(self.last, time.time(), text("state", state))
        self.writer.close()
