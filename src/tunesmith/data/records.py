"""What a row of data means, whatever its file format, and what is made of it for training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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

    A run's *row* is an example; or, where answers to one prompt are compared, the group of their examples: row g is the examples
    groups[g]:groups[g+1]. There answer (E,) int32 says which of its record's answers an example is, from 0, the best; values (E,)
    float32 that answer's score, or 1 and 0 for good and bad (NaN: none). constants: by name, a number (S,) float32 for each of
    the S scored tokens, in their order (a reference's log-probs).
    """

    ids: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    record: npt.NDArray[np.int64]
    origins: Sequence[Origin]
    answer: npt.NDArray[np.int32] | None = None
    groups: npt.NDArray[np.int64] | None = None
    values: npt.NDArray[np.float32] | None = None
    constants: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per example, (E,)."""
        return np.diff(self.offsets)

    @cached_property
    def scored_offsets(self) -> npt.NDArray[np.int64]:
        """Where each example's scored tokens begin among all scored tokens, (E+1,)."""
        counts: Any = np.add.reduceat(self.scored, self.offsets[:-1], dtype=np.int64) if len(self) else []
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def rows(self) -> int:
        """How many rows there are, R."""
        return len(self) if self.groups is None else len(self.groups) - 1

    @property
    def row_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per row, (R,); a prompt that several answers share counts for each."""
        return np.diff(self.offsets if self.groups is None else self.offsets[self.groups])

    @property
    def row_scored(self) -> npt.NDArray[np.int64]:
        """Scored tokens per row, (R,)."""
        return np.diff(self.scored_offsets if self.groups is None else self.scored_offsets[self.groups])

    @property
    def row_record(self) -> npt.NDArray[np.int64]:
        """The record that each row came from, (R,)."""
        return self.record if self.groups is None else self.record[self.groups[:-1]]

    def members(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the examples of `rows`, row by row."""
        if self.groups is None:
            return rows
        first, n = self.groups[rows], self.groups[rows + 1] - self.groups[rows]
        within: npt.NDArray[np.int64] = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        return within + np.repeat(first, n)
