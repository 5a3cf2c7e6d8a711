"""Answers kept as they come, by a hash of what was asked: an interrupted synthesis goes on, a repeated one gives the same rows."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.synthesis._rounds import Answer, NoAnswer, Request
from tunesmith.errors import InputError


class Journal:
    """A file of JSON lines, {"key", "answer", "why" of an answer that is of no use}; what a kill left half written is cut off.

    Several processes may write to one: each takes the file's lock for a line, and reads what the others wrote meanwhile. Of two
    answers to one request the first counts, then and later.
    """

    def __init__(self, file: Path, writer: str) -> None:
        """`writer` names the model: its answers are nobody else's."""
        self.file, self.writer = file, writer
        self.places: dict[bytes, int] = {}
        self.end = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.handle = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        except OSError as e:
            raise InputError(
                f"synthesize.journal: {file} cannot be written ({e.strerror}); choose another place."
            ) from e
        with self._locked():
            self._catch_up()

    def get(self, request: Request) -> Answer | None:
        """Return the answer kept for a request, None where there is none yet."""
        place = self.places.get(self._key(request))
        if place is None:
            return None
        self.handle.seek(place)
        line = json.loads(self.handle.readline())
        return NoAnswer(line["why"]) if "why" in line else str(line["answer"])

    def keep(self, request: Request, answer: str, why: str | None = None) -> None:
        """Write an answer down; `why` says why it is of no use."""
        key = self._key(request)
        entry = {"key": key.hex(), "answer": answer} | ({} if why is None else {"why": why})
        line = json.dumps(entry).encode() + b"\n"
        with self._locked():
            self._catch_up()
            self.handle.seek(self.end)
            self.handle.write(line)
            self.handle.flush()
            self.places.setdefault(key, self.end)
            self.end += len(line)

    def close(self) -> None:
        """Bring it to the disk."""
        os.fsync(self.handle.fileno())
        self.handle.close()

    def _key(self, request: Request) -> bytes:
        """Return the SHA-256 of the model's name and all that the request says."""
        asked = [self.writer, request.messages, request.max_tokens, request.temperature, request.seed]
        asked += [request.choices] if request.choices else []
        return hashlib.sha256(json.dumps(asked).encode()).digest()

    def _catch_up(self) -> None:
        """Read the lines that are new, cut off half a one; InputError where the file is no journal, which is left as it is."""
        if os.fstat(self.handle.fileno()).st_size == self.end:
            return
        self.handle.seek(self.end)
        for line in self.handle:
            if not line.endswith(b"\n"):
                break
            try:
                self.places.setdefault(bytes.fromhex(json.loads(line)["key"]), self.end)
            except (ValueError, KeyError, TypeError) as e:
                raise InputError(
                    f"{self.file} is no journal of answers (a line is {line[:40]!r}); name another."
                ) from e
            self.end += len(line)
        self.handle.truncate(self.end)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file's lock; on a file system without locks nothing is held."""
        with contextlib.suppress(OSError):
            fcntl.flock(self.handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(self.handle, fcntl.LOCK_UN)
