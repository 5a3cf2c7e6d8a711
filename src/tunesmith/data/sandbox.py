"""Chat templates, rendered in a process of their own: whatever a template does, ours neither hangs nor fills.

A light child (sandbox_child.py, which imports Jinja alone) is started at the first rendering, lives as long as this
process, and is replaced when a template has broken it. docs/design/templates.md says what is promised and why so.
"""

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tunesmith.data.records import Message
from tunesmith.errors import InputError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_BATCH, _BATCH_BYTES = 256, 1 << 20  # conversations of a request, and their bytes
# What Python needs to start, and the clock's zone; the environment may hold keys and tokens too.
_ENVIRONMENT = {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "PYTHONHOME", "TZ", "TZDIR"}
_MOST_REPLY = 64 << 20  # bytes
# Seconds for a request. None where the kernel watches the child's processor time: a template can wait for nothing, and a
# busy machine, or a Ctrl-Z, would stop harmless ones.
_WALL = None if hasattr(signal, "setitimer") else 2.0


class Job(NamedTuple):
    """A conversation, and what is asked: its text with (True) or without the generation prompt, or the turns to be placed."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    ask: bool | list[int]
    origin: object


def run(jobs: Iterable[Job], tokenizer: Any, template: str | None = None, ends: Sequence[str] = ()) -> Iterator[Any]:
    """Yield what each job asks, in order: a text, or [text, spans] of each example (see layout.lay_out).

    `template` stands in for the tokenizer's own. InputError names the conversation that the template refuses, or at
    which it was stopped.
    """
    variables = tokenizer.special_tokens_map
    for batch, lines in _batches(jobs):
        templates = _templates(batch, tokenizer, template)
        header = {"templates": templates, "variables": variables, "ends": ends}
        known = next((_broken[source] for source in templates.values() if source in _broken), None)
        if known is not None:
            raise _error(batch[0], known, tokenizer)
        head, done = json.dumps(header, default=str).encode("utf-8", "surrogatepass"), 0
        while done < len(batch):
            try:
                results = _child.ask([head, *lines[done:]])
            except _Stop as stopped:
                if stopped.state in ("time", "memory", "recursion", "unsafe"):
                    _broken.update(dict.fromkeys(templates.values(), stopped))
                raise _error(batch[done + stopped.index], stopped, tokenizer) from None
            yield from results
            done += len(results)


def text(job: Job, tokenizer: Any, template: str | None = None) -> str:
    """Return the rendering of one conversation; InputError as `run`."""
    (out,) = run([job], tokenizer, template)
    return str(out)


def _batches(jobs: Iterable[Job]) -> Iterator[tuple[list[Job], list[bytes]]]:
    batch: list[Job] = []
    lines: list[bytes] = []
    size = 0
    for job in jobs:
        line = json.dumps([job.messages, job.tools, job.ask], ensure_ascii=False, default=_inert)
        lines.append(line.encode("utf-8", "surrogatepass"))
        batch.append(job)
        size += len(lines[-1])
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield batch, lines
            batch, lines, size = [], [], 0
    if batch:
        yield batch, lines


def _inert(value: Any) -> Any:
    """Return what transformers shows a template in place of an object: a number's value, else its type's name."""
    plain = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else None
    return plain if isinstance(plain, (bool, int, float, str)) else f"<{type(value).__name__}>"


def _templates(batch: list[Job], tokenizer: Any, template: str | None) -> dict[str, str]:
    """Return the template for conversations without tools ("plain") and with ("tools"), as far as the batch has them."""
    templates: dict[str, str] = {}
    for i, job in enumerate(batch):
        kind = "plain" if job.tools is None else "tools"
        if kind not in templates:
            try:
                templates[kind] = tokenizer.get_chat_template(template, job.tools)
            except ValueError as error:  # it has none, or none of that name
                raise _error(job, _Stop(i, "refused", str(error).split("\n")[0].rstrip(".")), tokenizer) from error
    return templates


def _error(job: Job, stopped: "_Stop", tokenizer: Any) -> InputError:
    why = stopped.why
    if stopped.state == "refused":
        roles = ", ".join(str(m["role"]) for m in job.messages[:6]) + (", …" if len(job.messages) > 6 else "")
        return RefusedError(
            f"{job.origin}: the model's chat template refuses this conversation ({why}); its roles are {roles}. "
            "Change the row, or use a model whose template takes it."
        )
    if stopped.state == "unclear":
        return RefusedError(
            f"{job.origin}: the model's chat template writes the turns before an answer otherwise once the answer is there, "
            "so where the answer begins cannot be told. Change the row, or use a model with another template."
        )
    if stopped.state == "long":
        return RefusedError(
            f"{job.origin}: the model's chat template writes earlier turns otherwise once a later answer is there, and so "
            f"its {why} make an example of each answer, too many to hold; split the row into shorter conversations."
        )
    if stopped.state in ("killed", "start"):
        what = (
            "was killed twice; make room in the machine's memory"
            if stopped.state == "killed"
            else f"ends at once ({why})"
        )
        return InputError(f"{job.origin}: the process in which chat templates run {what}, then run it again.")
    did = {
        "time": "ran on without an end",
        "memory": "asked for over 256 MB of memory",
        "recursion": "calls itself without end",
        "size": f"wrote {why}",
        "unsafe": f"reaches for Python's own parts ({why})",
        "died": f"broke the process it ran in ({why})",
    }[stopped.state]
    return InputError(
        f"{job.origin}: the chat template of {tokenizer.name_or_path or 'the model'} was stopped, for it {did}; "
        f"{_shorten(job)}use another model, or put a template that you trust into its folder."
    )


def _shorten(job: Job) -> str:
    """Return a first remedy where the conversation is long: it may be the row, and no fault of the template."""
    size = sum(len(str(m.get("content") or "")) for m in job.messages)
    return f"split the row ({len(job.messages):,} turns), " if len(job.messages) > 100 or size > 1 << 20 else ""


class RefusedError(InputError):
    """The template does not take a conversation: it raised an error, as templates do on purpose."""


class _Stop(Exception):  # noqa: N818 (it says what to tell, not an error of ours)
    """The template failed at conversation `index` of a request."""

    def __init__(self, index: int, state: str, why: str) -> None:
        super().__init__(index, state, why)
        self.index, self.state, self.why = index, state, why


_broken: dict[str, _Stop] = {}  # templates that were stopped: who goes through row after row waits for one of them once


class _Child:
    """The process, started when it is first asked; one request at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def ask(self, lines: list[bytes]) -> list[Any]:
        """Return the result of each conversation, of the first few where they are long; _Stop at the first that has none."""
        payload = b"\n".join(lines)
        with self.lock:
            replies = self._tried(payload) or self._tried(payload)  # killed from outside: once more
        if replies is None:
            raise _Stop(0, "killed", "")
        if replies[-1][0] != "ok":
            raise _Stop(len(replies) - 1, *replies[-1])
        return [result for _, result in replies]

    def _tried(self, payload: bytes) -> list[Any] | None:
        """Return the reply's [state, result or why] of each conversation; None where something else killed the process."""
        if self.process is not None and self.process.poll() is not None:
            self.end()  # somebody ended it between two requests: no template's fault
        process = self.process = self.process or _start()
        late = threading.Event()
        timer = threading.Timer(_WALL or 0, _kill, (process, late))
        timer.daemon = True
        if _WALL:
            timer.start()
        replies = None
        try:
            replies = _exchange(process, struct.pack("<Q", len(payload)) + payload)
        except BrokenPipeError:
            pass
        except BaseException:  # Ctrl-C: the reply that is on its way would be taken for the next one's
            self.end()
            raise
        finally:
            timer.cancel()
        if replies is None:
            stop = _dead(process, late.is_set())
            self.end()
            if stop.state == "killed":
                return None
            raise stop
        if replies[-1][0] not in ("ok", "refused", "unclear", "long"):
            self.end()
        return replies

    def end(self) -> None:
        """End the process; the next request starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
            self.process = None


def _start() -> "subprocess.Popen[bytes]":
    """Start the child; in a session of its own, for a Ctrl-C in the terminal is not meant for it.

    It looks for Jinja where we do. Its pipes have no buffer: a fork of ours would write what waits in one a second time.
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-W", "ignore", str(_CHILD)]
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, map(str, sys.path)))
    return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=kept)


def _kill(process: "subprocess.Popen[bytes]", late: threading.Event) -> None:
    late.set()
    process.kill()


def _exchange(process: "subprocess.Popen[bytes]", request: bytes) -> list[Any] | None:
    """Return the reply's [state, result or why] of each conversation, None where the process died."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    rest = memoryview(request)
    while rest:
        rest = rest[process.stdin.write(rest) :]
    head = _read(process.stdout, 8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    if length > _MOST_REPLY:
        return [["size", f"over {_MOST_REPLY >> 20} MB for a few conversations"]]
    reply = _read(process.stdout, length)
    if len(reply) < length:
        return None
    replies: list[Any] = json.loads(reply.decode("utf-8", "surrogatepass"))
    _read(process.stderr, len(replies))
    return replies


def _read(pipe: IO[bytes], length: int) -> bytes:
    """Return so many bytes, fewer where the pipe ends."""
    parts = []
    while length and (part := pipe.read(min(length, 1 << 20))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _dead(process: "subprocess.Popen[bytes]", late: bool) -> _Stop:
    """Return at which conversation the process ended, and why."""
    assert process.stderr is not None
    said = _read(process.stderr, 1 << 20)
    begun = len(said) - len(said.lstrip(b"."))
    code = process.wait()
    if late or code == -getattr(signal, "SIGPROF", 0):
        return _Stop(max(begun - 1, 0), "time", "")
    if code == -getattr(signal, "SIGKILL", 0):
        return _Stop(max(begun - 1, 0), "killed", "")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if not begun:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return _Stop(0, "start", ": ".join([how, *last])[:300])
    return _Stop(begun - 1, "died", how)


def _forget() -> None:
    """Leave the child to the process that started it: two that speak to it at once would mix their words."""
    global _child
    _child = _Child()


_child = _Child()
atexit.register(lambda: _child.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
