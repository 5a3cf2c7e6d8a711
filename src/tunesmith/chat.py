"""A chat in the terminal: answers stream in, history is kept, Ctrl-C stops an answer and Ctrl-D leaves."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from tunesmith.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.model.many import Several

HELP = """/system TEXT   set the system message (without TEXT: take it away)
/adapter NAME  answer with another adapter, "none" for the model without (without NAME: list them)
/reset         forget the conversation, keep the system message
/help          this list
/quit          leave (as Ctrl-D does); Ctrl-C stops an answer"""
COMMANDS = ("/system", "/adapter", "/reset", "/help", "/quit")

Message = dict[str, Any]


def chat(
    model: str,
    adapter: str | Sequence[str] | None = None,
    *,
    system: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
    max_new_tokens: int = 512,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    **sampling: Any,
) -> list[Message]:
    """Chat with a model until the input ends; return the conversation's messages.

    `adapter`: folders or NAME=DIR; the first answers, `/adapter NAME` switches. `quantize`: how the base is held, as in
    tunesmith.model.inference.check.
    `sampling`: the other keyword arguments of tunesmith.model.generate.generate; by default answers are greedy. Lines
    are read from a terminal with line editing, or one by one from `stdin`; colour only on a terminal. InputError as
    loading raises it.
    """
    from rich.console import Console

    from tunesmith.model import many
    from tunesmith.model.generate import check_sampling

    check_sampling(max_new_tokens, **sampling)
    several = many.check_several(model, many.named(adapter), device, base=True, quantize=quantize)
    console = Console(file=stdout or sys.stdout, highlight=False, markup=False, soft_wrap=True)
    for notice in several.notices:
        console.print(notice, style="dim")
    read = _reader(stdin or sys.stdin, console)
    sampling["max_new_tokens"] = max_new_tokens
    return converse(several.load(), several, read, console, system, **sampling)


def converse(
    model: Any,
    several: "Several",
    read: Callable[[], str],
    console: "Console",
    system: str | None = None,
    **sampling: Any,
) -> list[Message]:
    """Answer what `read` returns until it raises EOFError or says /quit; return the messages of the conversation."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    current = next(iter(several.choices))
    if console.is_terminal:
        console.print("Say something; /help lists the commands, Ctrl-D leaves.", style="dim")
    while True:
        try:
            line = read().strip()
        except EOFError:
            return messages
        except KeyboardInterrupt:
            console.print("\nCtrl-C stops an answer; Ctrl-D or /quit leaves.", style="dim")
            continue
        if line == "/quit":
            return messages
        if line.partition(" ")[0] == "/adapter":
            current = _switch(line.partition(" ")[2].strip(), current, several, console)
        elif line.startswith("/"):
            messages = _command(line, messages, console)
        elif line:
            with several.using(model, current) as tokenizer:
                messages = _turn(model, tokenizer, messages, line, console, sampling)


def _switch(name: str, current: str, several: "Several", console: "Console") -> str:
    """Return the name of what answers from now on: `name`, if it is one."""
    from tunesmith.model import many

    if not name:
        listed = [f"{'*' if one == current else ' '} {one}" for one in several.choices]
        console.print("\n".join(listed))
        return current
    try:
        found = many.choice(several, name)
    except InputError as e:
        console.print(str(e), style="yellow")
        return current
    said = "The model answers without an adapter now." if found == many.NONE else f"The adapter {found} answers now."
    console.print(said, style="dim")
    return found


def _reader(stdin: TextIO, console: "Console") -> Callable[[], str]:
    if stdin.isatty() and console.is_terminal:
        with contextlib.suppress(ImportError):  # Windows: the terminal edits lines itself
            import readline  # noqa: F401 (gives input() line editing and a history)
        return lambda: input("\n› ")

    def read() -> str:
        line = stdin.readline()
        if not line:
            raise EOFError
        return line

    return read


def _command(line: str, messages: list[Message], console: "Console") -> list[Message]:
    """Return the messages after a line that begins with a slash."""
    command, _, text = line.partition(" ")
    spoken = [m for m in messages if m["role"] != "system"]
    if command == "/help":
        console.print(HELP, style="dim")
    elif command == "/reset":
        console.print("The conversation begins anew.", style="dim")
        return [m for m in messages if m["role"] == "system"]
    elif command == "/system":
        console.print("The system message is set." if text.strip() else "There is no system message now.", style="dim")
        return [{"role": "system", "content": text.strip()}, *spoken] if text.strip() else spoken
    else:
        console.print(f'There is no command "{command}".{did_you_mean(command, COMMANDS)}', style="yellow")
    return messages


def _turn(
    model: Any, tokenizer: Any, messages: list[Message], line: str, console: "Console", sampling: dict[str, Any]
) -> list[Message]:
    """Stream one answer; return the messages with it, or without the turn where the model cannot take it."""
    from tunesmith.model.generate import stream

    said = ""
    try:
        asked = shorten(model, tokenizer, [*messages, {"role": "user", "content": line}], sampling["max_new_tokens"])
        if len(asked) <= len(messages):
            console.print("(The context is full: the oldest turns were left out.)", style="dim")
        pieces = stream(model, tokenizer, asked, **sampling)
        try:
            for piece in pieces:
                piece = piece if said else piece.lstrip()
                said += piece
                console.file.write(_harmless(piece))  # as it is: rich would set tabs by the piece, not by the line
                console.file.flush()
        except KeyboardInterrupt:
            console.print(" (stopped)", end="", style="dim")
        finally:
            pieces.close()
    except InputError as e:
        console.print(str(e), style="yellow")
        return messages
    console.print()
    return [*asked, {"role": "assistant", "content": said}]


def shorten(model: Any, tokenizer: Any, messages: list[Message], max_new_tokens: int) -> list[Message]:
    """Drop the oldest exchanges until a quarter of the context (or max_new_tokens, if less) is left for the answer."""
    from tunesmith.model.generate import context_length, encode_prompts

    context = context_length(model)
    head = 1 if messages[0]["role"] == "system" else 0
    while context and len(messages) > head + 1:
        used = len(encode_prompts(tokenizer, [(messages, None)])[0])
        if used + min(max_new_tokens, context // 4) <= context:
            break
        messages = [*messages[:head], *messages[head + 2 :]]
    return messages


def _harmless(text: str) -> str:
    """Return the text without control characters: what a model writes shall not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or c == "\u200d")
