"""The process in which chat templates run. sandbox.py starts this file as a script: it imports nothing but Jinja.

A template is a program by whoever made the model. Here it has Jinja's sandbox (no attribute of Python's own), a limit of
memory over the process's start, one of processor time for each rendering, and no file to open, no process to start.

A request on standard input is a length (8 bytes) and lines of JSON: first {"templates", "variables", "ends"}, then one
[messages, tools, ask] per conversation; ask is true or false for its text with or without the generation prompt, or the
turns whose places are wanted. The reply on standard output is a length and a JSON list of ["ok", result] or [what is
wrong, why]; it ends early where it is long, and the rest is asked for again. A byte on standard error as each
conversation begins says which one it was when the process dies.
"""

import contextlib
import encodings.unicode_escape  # what Jinja would import later, when nothing can be opened
import html
import json
import os
import pprint
import random
import signal
import struct
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

import jinja2.constants
import jinja2.debug
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2.exceptions import SecurityError

SECONDS = 1.25  # of processor time for one rendering
MEMORY = 200 << 20  # bytes over the process's start, so that it never has 256 MB
PLENTY, TIMES = 256 << 10, 16  # a rendering has at most PLENTY characters and TIMES its conversation's bytes
# Seconds that a rendering, a byte and a pair of its turns may take on average, after the first SECONDS: some templates
# (Gemma 4's) look for each turn through all before it, which takes 2e-6 a pair.
_EACH, _BYTE, _PAIR = 0.02, 2e-6, 1e-5
_REPLY, LONGEST = 16 << 20, 24 << 20  # bytes after which a reply ends; of memory for the texts of one conversation
_REASONING = ("reasoning_content", "thinking", "reasoning")
Spans = list[tuple[int, int, bool, int]]
_NEEDED_LATER = (encodings.unicode_escape, html, jinja2.constants, jinja2.debug, pprint, random, textwrap)


class Stop(Exception):  # noqa: N818 (an answer like others)
    """A template that goes beyond its limits: (what is wrong, why)."""


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, in which reaching for Python's internals is an error at once."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Raise where Jinja would give an undefined value."""
        raise SecurityError(f"{attribute} of {type(obj).__name__}")


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: marks an answer for trainers; what is between is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja reads it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the block's body as a call, which gives it a scope of its own as transformers' does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may have a variable called self
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"{name} of a namespace")


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """Return the template in transformers' environment for chat templates."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment.from_string(source)


def prepared(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as transformers hands them to a template: without empty keys, reasoning under each name for it."""
    out = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[key] for key in _REASONING if key in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        out.append(kept)
    return out


def lay_out(
    write: Callable[[int, bool], str], messages: list[dict[str, Any]], answers: list[int], ends: tuple[str, ...]
) -> list[tuple[str, Spans]]:
    """Return (text, spans) of each example; write(k, prompt) renders the first k turns. layout.lay_out says what is found."""
    kept: list[tuple[int, str]] = []  # of each text but the last: how much the next one has of it, and the rest
    spans: Spans = []
    text, size, one = "", 0, True
    for k in answers:
        earlier, before, text = text, write(k, True), write(k + 1, False)
        if spans:
            end = spans[-1][1] if text.startswith(earlier[: spans[-1][1]]) else 0
            kept.append((end, earlier[end:]))
            one &= end > 0
        size += sys.getsizeof(text)
        if not one and size > LONGEST:
            raise Stop("long", f"{len(messages):,} turns")
        body = text.rstrip()
        closed = body.endswith(ends)
        start = _start(before, text, partial(write, k, False), messages[k])
        spans.append((start, len(body) if closed else len(text), closed, k))
    if one:
        return [(text, spans)] if spans else []
    texts = [text]
    for end, rest in reversed(kept):
        texts.append(texts[-1][:end] + rest)
    return [(text, [span]) for text, span in zip(reversed(texts), spans, strict=True)]


def _start(before: str, text: str, without: Callable[[], str], message: dict[str, Any]) -> int:
    """Return where in text the answer begins: where the prompt `before` ends, or where text leaves it.

    A template may open in the prompt what the answer does not have (a block for reasoning): text then leaves it in the
    generation prompt, but not in the midst of what the answer says. Or it writes earlier turns otherwise once the answer
    is there: then the answer begins after the last generation prompt before its words. `without` is the prompt's turns alone.
    """
    if text.startswith(before):
        return len(before)
    parts, history = _common(before, text), _common(before, without())
    called = [call.get("function", call).get("name") for call in message.get("tool_calls") or []]
    words = [
        w.strip() for w in (message.get("reasoning_content"), message.get("content"), *called) if isinstance(w, str)
    ]
    if parts >= history:
        said = next((w for w in words if w), "")
        begins = text.find(said, max(0, parts - len(said))) if said else -1
        return begins if 0 <= begins < parts else parts
    spoken = next((at for w in words if w and (at := text.rfind(w)) >= 0), -1)
    prompt = before[history:].strip()
    begins = text.rfind(prompt, 0, spoken) if spoken >= 0 and prompt else -1
    if begins < 0:
        raise Stop("unclear", "")
    return begins + len(prompt)


def _common(a: str, b: str) -> int:
    """Return how many characters both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Meter:
    """Renders within the limits: each rendering has SECONDS, all together little more than their number and size explain."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.header, self.started, self.allowed = header, time.process_time(), SECONDS

    def render(self, messages: list[dict[str, Any]], tools: Any, prompt: bool, size: int) -> str:
        if not messages:
            raise ValueError("there are no turns to render")
        self.allowed += _EACH + _BYTE * size + _PAIR * len(messages) ** 2
        left = self.allowed - (time.process_time() - self.started)
        if left <= 0:
            raise Stop("time", "")
        _alarm(min(left, SECONDS))
        template = compiled(self.header["templates"]["plain" if tools is None else "tools"])
        text = template.render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **self.header["variables"]
        )
        _alarm(0)
        if len(text) > PLENTY + TIMES * size:
            raise Stop("size", f"{len(text):,} characters for a conversation of {size:,} bytes")
        return text


def _alarm(seconds: float) -> None:
    """Have the kernel end this process after so much processor time: Python's own handlers wait for long C calls."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(line: bytes, header: dict[str, Any], meter: _Meter) -> Any:
    """Return what is asked of one conversation."""
    messages, tools, ask = json.loads(line)
    messages = prepared(messages)

    def write(k: int, prompt: bool) -> str:
        return meter.render(messages[:k], tools, prompt, len(line))

    return write(len(messages), ask) if isinstance(ask, bool) else lay_out(write, messages, ask, tuple(header["ends"]))


def guarded(line: bytes, header: dict[str, Any], meter: _Meter) -> tuple[str, bytes]:
    """Return ("ok", or what is wrong) and the answer as JSON, with why: an error of the template is an answer too."""
    try:
        return "ok", json.dumps(("ok", answer(line, header, meter)), ensure_ascii=False).encode()
    except Stop as stopped:
        state, why = stopped.args
    except SecurityError as error:
        state, why = "unsafe", str(error)[:300]
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        state, why = "refused", f"it holds {half}, half a character, which no tokenizer reads"
    except MemoryError:
        state, why = "memory", ""
    except RecursionError:
        state, why = "recursion", ""
    except Exception as error:  # a template is a program: it raises what it likes
        state, why = "refused", (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    finally:
        _alarm(0)
    return state, json.dumps((state, why)).encode()


def limit() -> None:
    """Take from this process what a template has no use for: memory, files, processes."""
    try:
        import resource
    except ImportError:  # Windows has none of it
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # who started us may ignore or block it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    memory = ("RLIMIT_DATA", MEMORY)  # what is written to, where the system does not tell what there is already
    with contextlib.suppress(OSError), open("/proc/self/statm") as f:
        memory = ("RLIMIT_AS", int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY)
    for name, most in (memory, ("RLIMIT_NOFILE", 3), ("RLIMIT_NPROC", 0), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a limit that is lower already stays
            resource.setrlimit(getattr(resource, name), (most, most))


def main() -> None:
    """Answer requests until standard input ends."""
    limit()
    given, out = sys.stdin.buffer, sys.stdout.buffer
    while head := given.read(8):
        first, *lines = given.read(struct.unpack("<Q", head)[0]).split(b"\n")
        header = json.loads(first)
        meter, results, size = _Meter(header), [], 0
        for line in lines:
            os.write(2, b".")
            state, result = guarded(line, header, meter)
            results.append(result)
            size += len(result)
            if state != "ok" or size > _REPLY:
                break
        reply = b"[" + b",".join(results) + b"]"
        out.write(struct.pack("<Q", len(reply)))
        out.write(reply)
        out.flush()


if __name__ == "__main__":
    main()
