"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere; always on standard error."""

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunesmith.evaluation.report_format import (
    count,
    duration,
    is_fraction,
    memory,
    percent,
    setting,
    significant,
    title,
)
from tunesmith.evaluation.report_run import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

Event = dict[str, Any]
RECENT = 20  # steps behind the loss, the speed and the time left that are shown
TOLD = (("kl_to_base", "KL"), ("distance_to_base", "distance"))  # what a regularizer tells of a step
LINES = 10  # plain lines of a run, besides its evaluations


class Progress:
    """A listener for a run's events. Use it as a context manager, so that an exception leaves the terminal as it was.

    quiet: show nothing. console: where to write; standard error if None. Standard output is never touched.
    """

    def __init__(self, quiet: bool = False, console: "Console | None" = None) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)
        # not Console.is_terminal: FORCE_COLOR makes that true of a log file, which the bar would fill with codes
        self.live = self.console.file.isatty() and not self.console.is_dumb_terminal
        self.bar: Bar | None = None
        self._reset({})
        self.inferred: list[Event] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Show one event; names that are not known are passed over."""
        if self.quiet:
            return
        name = event.get("event")
        if name == "inferred":
            self.inferred.append(event)  # shown together, aligned, when another event comes
            return
        self._show_inferred()
        shows = {
            "notice": self._notice,
            "skipped": self._notice,
            "start": self._start,
            "step": self._step,
            "evaluate": self._evaluate,
            "end": self._end,
        }
        if name in shows:
            shows[name](event)

    def close(self) -> None:
        """Show what is still held back and give the terminal back. It may be called again."""
        self._show_inferred()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _reset(self, start: Event) -> None:
        self.total: int | None = start.get("steps")
        self.told = int(start.get("resumed_from") or 0)  # the step of the last plain line
        self.validation = ""
        self.recent: deque[Event] = deque(maxlen=RECENT)

    def _say(self, text: str, style: str = "") -> None:
        # a row's text may hold control codes, which would otherwise reach the terminal
        clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
        self.console.print(clean, style=style, markup=False, highlight=False, soft_wrap=True)

    def _show_inferred(self) -> None:
        lines = [(str(e.get("key")), setting(e.get("value")), str(e.get("reason", ""))) for e in self.inferred]
        self.inferred = []
        key_width = max((len(key) for key, _, _ in lines), default=0)
        value_width = min(max((len(value) for _, value, _ in lines), default=0), 24)  # one long value moves no other
        for key, value, reason in lines:
            self._say(f"{key:<{key_width}} = {value:<{value_width}}   ({reason})")

    def _notice(self, event: Event) -> None:
        self._say(f"Note: {event.get('message', '')}", "yellow")

    def _start(self, event: Event) -> None:
        self.close()
        self._reset(event)
        self._say(start_line(event), "bold")
        if self.live:
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("step {task.fields[at]}"),
            BarColumn(bar_width=None, complete_style="blue", finished_style="blue"),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            expand=True,
            refresh_per_second=4,  # the processor is for the training
            redirect_stdout=False,  # what is printed to standard output stays there
        )
        self.task = self.bar.add_task("", total=self.total, completed=self.told, at=self._at(self.told), status="")
        self.bar.start()

    def _step(self, event: Event) -> None:
        self.recent.append(event)
        step = int(event.get("step", 0))
        if self.bar is not None:
            self.bar.update(self.task, completed=step, at=self._at(step), status=self._status(step))
        elif not self.live and self._due(step):
            self.told = step
            self._say(f"step {self._at(step)}  {self._status(step)}")

    def _due(self, step: int) -> bool:
        every = max(1, round(self.total / LINES)) if self.total else 100
        return step - self.told >= every or step == self.total

    def _evaluate(self, event: Event) -> None:
        entries = event.get("metrics") or {}
        shown = [_metric(name, entry) for name, entry in entries.items() if "/" not in name]
        loss = (entries.get("validation_loss") or {}).get("value")
        if loss is not None:
            self.validation = f"validation {significant(loss)}"
        if self.bar is not None:
            self.bar.update(self.task, status=self._status(int(event.get("step", 0))))
        elif not self.live and shown:
            self._say(f"step {self._at(int(event.get('step', 0)))}  {', '.join(shown)}")

    def _end(self, event: Event) -> None:
        self.close()
        self._say(end_line(event), "bold" if event.get("state") == "done" else "bold red")

    def _at(self, step: int) -> str:
        return f"{step:,}/{self.total:,}" if self.total else f"{step:,}"

    def _status(self, step: int) -> str:
        """Return the loss, the speed, the time left and the memory, over the recent steps."""
        known = [(number(e.get("loss")), e.get("scored_tokens") or 1) for e in self.recent]
        losses = [(loss, n) for loss, n in known if loss is not None]
        seconds = sum(e.get("seconds") or 0.0 for e in self.recent)
        parts = []
        if losses:
            parts.append(f"loss {significant(sum(loss * n for loss, n in losses) / sum(n for _, n in losses))}")
        elif self.recent:
            parts.append("loss –")
        last = self.recent[-1] if self.recent else {}
        facts = [(short, number(last.get(key))) for key, short in TOLD]
        parts += [f"{short} {significant(value)}" for short, value in facts if value is not None]
        if seconds > 0:
            parts.append(f"{count(sum(e.get('tokens') or 0 for e in self.recent) / seconds)} tok/s")
            if self.total and step < self.total:
                parts.append(f"{duration((self.total - step) * seconds / len(self.recent))} left")
        if self.recent and self.recent[-1].get("memory_bytes"):
            parts.append(memory(self.recent[-1]["memory_bytes"]))
        return "  ".join([*parts, self.validation] if self.validation else parts)


def start_line(event: Event) -> str:
    """Return what is about to be trained on what, in a sentence."""
    text = f"Training {event.get('model')} with {event.get('objective')}"
    if event.get("adapter"):
        text += _adapter(event)
    trained, total = event.get("trained_parameters"), event.get("parameters")
    if trained and total:
        text += f" ({_share(trained, total, event.get('adapter_bytes'))})"
    text += f": {count(event.get('steps'))} steps"
    if event.get("epochs"):
        text += f", {event['epochs']:g} epoch{'' if event['epochs'] == 1 else 's'}"
    if event.get("rows") is not None:
        text += f" of {count(event['rows'])} rows"
    if event.get("validation_rows"):
        text += f", {count(event['validation_rows'])} held out"
    if event.get("resumed_from") is not None:
        text += f"; resumed at step {count(event['resumed_from'])}"
    return text


def _adapter(event: Event) -> str:
    """Return what is trained by its name, and the old adapter it is put on."""
    name, on = str(event["adapter"]), event.get("adapter_on")
    if name.startswith("from "):
        return f", continuing the adapter {name}"
    text = f", {name}" if name == "full" else f", {name} adapter"
    if on is None:
        return text
    return (
        f"{text} on the base with {on} merged in" if event.get("adapter_how") == "merge" else f"{text} stacked on {on}"
    )


def _share(trained: int, total: int, size: int | None) -> str:
    """Return how many parameters are trained, their share in percent, and what the adapter's file will take."""
    if trained == total:
        return f"{count(total)} parameters"
    text = f"{count(trained)} of {count(total)} parameters, {significant(100 * trained / total)}%"
    return text if size is None else f"{text}; the adapter takes {memory(size)}"


def end_line(event: Event) -> str:
    """Return how the run ended; what went wrong is told by the error that ends it."""
    endings = {
        "done": "Done",
        "interrupted": "Interrupted",
        "stopped": "Stopped by a guard",
    }
    text = endings.get(str(event.get("state")), "Failed")
    if event.get("step") is not None:
        text += f" at step {count(event['step'])}"
    if event.get("tokens") is not None:
        text += f": {count(event['tokens'])} tokens in {duration(event.get('seconds'))}"
    return text


def _metric(name: str, entry: Event) -> str:
    """Return 'validation loss 1.30 (1.25–1.35)'; answers' scores as percentages."""
    value, low, high = (number(entry.get(key)) for key in ("value", "low", "high"))
    write = percent if value is not None and is_fraction(name, [value]) else significant
    interval = f" ({write(low)}–{write(high)})" if low is not None and high is not None else ""
    return f"{title(name).lower()} {write(value)}{interval}"
