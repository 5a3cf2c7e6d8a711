"""A model behind an OpenAI-compatible address (POST /chat/completions): several requests at a time, patient with its limits."""

import os
import queue
import threading
from collections.abc import Sequence

from tunesmith.data.synthesis._http import Given, Http, check_url
from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._rounds import Request
from tunesmith.errors import InputError

_ENOUGH = 8  # requests refused with none answered: it is not their content
Outcome = tuple[Request, Given | Exception]


class Endpoint:
    """A model by its address and name. `key_env` names the environment variable that holds the key; it is kept nowhere else."""

    def __init__(
        self, url: str, model: str, key_env: str | None, concurrency: int, timeout: float, section: str = "synthesize"
    ) -> None:
        """`section`: where in the run file the address stands, for messages."""
        key = None if key_env is None else _key(key_env, section)
        self.http = Http(check_url(url, section), model, key, timeout)
        self.model, self.concurrency = model, concurrency
        self.tokens = {"asked": 0, "answered": 0}
        self.answered = False

    @property
    def name(self) -> str:
        """The model at its address, without what follows a question mark there."""
        return self.http.name

    def answer(self, requests: Sequence[Request], journal: Journal) -> None:
        """Answer what the journal does not hold yet, each answer written down as it comes; InputError where one cannot be had.

        The threads are daemons that only talk to the endpoint: Ctrl-C leaves them behind and loses what is under way. After an
        error they begin nothing new, and what is under way is still kept.
        """
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        stop = threading.Event()
        threads = min(self.concurrency, len(requests))
        for _ in range(threads):
            threading.Thread(target=self._work, args=(waiting, done, stop), daemon=True).start()
        left, failed = len(requests), None
        refusals: list[tuple[Request, Given]] = []  # not written down before something is answered: all may be refused
        try:
            while left:
                request, got = done.get()
                left -= 1
                if isinstance(got, Exception):
                    failed = failed or got
                elif got.refused:
                    refusals.append((request, got))
                    failed = failed or self._all_refused(refusals, more=True)
                else:
                    self.answered = True
                    self._keep(request, got, journal)
                if failed is not None:
                    stop.set()
                    left -= _emptied(waiting)
        finally:
            stop.set()
        if failed is None and not self.answered and not journal.places:
            failed = self._all_refused(refusals, more=False)
        if failed is not None:
            raise failed
        for request, got in refusals:
            self._keep(request, got, journal)

    def _all_refused(self, refusals: Sequence[tuple[Request, Given]], more: bool) -> InputError | None:
        if self.answered or not refusals or (more and len(refusals) < _ENOUGH):
            return None
        return InputError(f"{self.name} refuses every request ({refusals[-1][1].said}); check model and options.")

    def _keep(self, request: Request, got: Given, journal: Journal) -> None:
        self.tokens["asked"] += got.asked
        self.tokens["answered"] += got.answered
        journal.keep(request, got.text, got.why)

    def _work(
        self, waiting: "queue.SimpleQueue[Request]", done: "queue.SimpleQueue[Outcome]", stop: threading.Event
    ) -> None:
        while not stop.is_set():
            try:
                request = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((request, self.http.ask(request, stop)))
            except Exception as e:
                stop.set()  # before anybody begins another
                done.put((request, e))


def _emptied(waiting: "queue.SimpleQueue[Request]") -> int:
    """Take all out of a queue; return how many there were."""
    count = 0
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return count
        count += 1


def _key(variable: str, section: str) -> str:
    """Return the key; InputError, which never shows it, where there is none or it cannot stand in a header."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"{section}.key_env: the environment variable {variable} is not set; it should hold the key.")
    if not key.isascii() or not key.isprintable():
        raise InputError(
            f"{section}.key_env: what {variable} holds is no key: it has line breaks or letters beyond ASCII."
        )
    return key
