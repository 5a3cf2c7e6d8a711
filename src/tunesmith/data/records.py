"""What a row of data means, whatever its file format, and what is made of it for training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Message = dict[str, Any]
"""One turn in OpenAI's form: role, content (string or list of parts), and tool_calls / tool_call_id / name if any."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record came from; `row` counts from 1 in the file as people see it (line number for JSONL).

    `part` tells the records of one row apart, from 0: a conversation tree or a chat log makes several.
    """

    file: str
    row: int
    part: int = 0

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: every token is scored."""

    text: str
    origin: Origin
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. `trained[i]` says whether messages[i] is scored (only ever true for the assistant's turns).

    `extra` keeps the row's other fields that evaluation reads (category, check, ...).
    """

    messages: list[Message]
    trained: list[bool]
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preference:
    """Answers to one prompt, the best first. `scores`, if any, one per answer and falling (equal ones are ties).

    An answer is a list of turns: usually one of the assistant's, more where tools are called.
    """

    prompt: list[Message]
    answers: list[list[Message]]
    origin: Origin
    scores: list[float] | None = None
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> list[Message]:
        """The best answer."""
        return self.answers[0]

    @property
    def rejected(self) -> list[Message]:
        """The worst answer."""
        return self.answers[-1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer to a prompt, found good or bad."""

    prompt: list[Message]
    answer: list[Message]
    good: bool
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose answer the model finds itself; `reference`, if any, is what a right one says."""

    prompt: list[Message]
    origin: Origin
    reference: str | None = None
    tools: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Record = Text | Chat | Preference | Verdict | Prompt
KINDS: dict[type, str] = {
    Text: "text", Chat: "chat", Preference: "preference", Verdict: "verdict", Prompt: "prompt",
}  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Token sequences laid end to end: example i is ids[offsets[i]:offsets[i+1]].

    ids (T,) int32; scored (T,) bool, scored[t] says that token t is predicted and counts in the loss (the first token of an
    example never is); offsets (E+1,) int64; record (E,) int64, the index in the list of records each example came from
    (a template that rewrites its history makes several examples of one record); origins, one per record.
    """

    ids: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    record: npt.NDArray[np.int64]
    origins: Sequence[Origin]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example, (E,)."""
        return np.diff(self.offsets)
