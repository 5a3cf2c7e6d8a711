"""One request to an OpenAI-compatible address and what came of it: tried again where that may help, never sent elsewhere."""

import http.client
import ipaddress
import json
import math
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tunesmith.data.synthesis._rounds import CUT_OFF, Request
from tunesmith.errors import InputError
from tunesmith.masking import clean

TRIES = 6
_LONGEST_WAIT = 60.0  # seconds
_MOST_BYTES = 10_000_000  # of one response
_MOST_LOGPROBS = 20  # the most that OpenAI's and vLLM's addresses give
_LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_THIS_ONE = (400, 413, 422)  # what one request says is refused: too long, or by a filter; another one may pass


@dataclass(frozen=True, slots=True)
class Given:
    """An answer and its tokens as the endpoint counts them; `why` it is of no use, if so, and what the endpoint `said`."""

    text: str
    why: str | None = None
    asked: int = 0
    answered: int = 0
    refused: bool = False
    said: str = ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that sends elsewhere would be sent the key too."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Http:
    """The address, and how it is asked. Proxies of the environment are used, but not for this machine itself."""

    def __init__(self, url: urllib.parse.SplitResult, model: str, key: str | None, timeout: float) -> None:
        place = url.path.rstrip("/").removesuffix("/chat/completions")
        self.url = urllib.parse.urlunsplit(url._replace(path=f"{place}/chat/completions", fragment=""))
        self.name = f"{model} at {clean(f'{url.scheme}://{url.netloc}{place}')}"
        self.model, self.timeout = model, timeout
        self.headers = {"Content-Type": "application/json", "User-Agent": "tunesmith"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"
        direct = [urllib.request.ProxyHandler({})] if _is_here(url.hostname or "") else []
        self.opener = urllib.request.build_opener(_NoRedirect, *direct)
        self.reached = False
        self.others: dict[str, str | None] = {}  # a parameter's name at this endpoint, None where it has none

    def ask(self, request: Request, stop: threading.Event) -> Given:
        """Return what is answered; InputError where nothing can be had. `stop`: try no more."""
        reason, asked_wait = "", None
        for attempt in range(TRIES):
            if attempt and stop.wait(_wait(attempt, asked_wait)):
                break
            try:
                body = self._body(request)
                return given(self._post(json.dumps(body).encode()), request.choices)
            except urllib.error.HTTPError as e:
                said = _message(e)
                reason, asked_wait, self.reached = f"{e.code} {said}", e.headers.get("Retry-After"), True
                if e.code in _THIS_ONE and self._renamed(said, body):
                    continue
                if e.code in _THIS_ONE:
                    return Given("", f"a request the endpoint refuses ({e.code})", refused=True, said=reason)
                if e.code not in _LATER or "insufficient_quota" in said:
                    raise InputError(
                        f"{self.name} refuses the request ({reason}); check address, model and key."
                    ) from None
            except (OSError, http.client.HTTPException, ValueError) as e:  # no connection, broken off, no JSON
                cause = getattr(e, "reason", None) or e
                reason, asked_wait = str(cause) or type(cause).__name__, None
                if not self.reached and isinstance(
                    cause, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
                ):
                    raise InputError(
                        f"{self.name} cannot be reached ({clean(reason)[:200]}); check the address."
                    ) from None
        said = clean(reason)[:200].rstrip(". ")
        raise InputError(
            f"{self.name} gave no answer in {TRIES} tries ({said}); what was answered before is kept: run it again."
        )

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.as_messages(),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**31,
        }
        if request.choices:
            body |= {"logprobs": True, "top_logprobs": _MOST_LOGPROBS}
        for name, other in dict(self.others).items():
            value = body.pop(name, None)
            if other is not None:
                body[other] = value
        return body

    def _renamed(self, said: str, sent: dict[str, Any]) -> bool:
        """Say whether a refusal names a parameter that this endpoint has under another name, or not at all; from now on it is sent so."""
        if "max_completion_tokens" in said and "max_tokens" in sent:
            self.others["max_tokens"] = "max_completion_tokens"
            return True
        for name in ("seed", "temperature"):
            unknown = re.search(rf"(?i)(?:unsupported|unrecognized|not support|extra|not permitted|unknown|unexpected)[^.]*\b{name}\b"
                                rf"|\b{name}\b[^.]*(?:unsupported|unrecognized|not support|not permitted|unknown)", said)  # fmt: skip
            if unknown and name in sent:
                self.others[name] = None
                return True
        return False

    def _post(self, data: bytes) -> Any:
        asked = urllib.request.Request(self.url, data, self.headers)
        until = time.monotonic() + self.timeout
        content = bytearray()
        with self.opener.open(asked, timeout=self.timeout) as response:
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > _MOST_BYTES:
                    raise ValueError("an answer of over 10 MB")
                if time.monotonic() > until:  # it comes drop by drop
                    raise TimeoutError("timed out")
        self.reached = True
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("a response that is no JSON") from None


def given(answer: Any, choices: Sequence[str] = ()) -> Given:
    """Return what a response says, or how probable it is that it begins with each choice; ValueError where it is no chat completion."""
    try:
        choice = answer["choices"][0]
        text, ended = choice["message"].get("content"), choice.get("finish_reason")
        usage = answer.get("usage") or {}
        asked, answered = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError("a response without choices[0].message") from None
    if choices:
        found = _weighed(choice.get("logprobs"), choices)
        return Given(found or "", None if found else "no log-probabilities of the letters", asked, answered)
    if isinstance(text, list):  # parts
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    said = text if isinstance(text, str) else ""
    why = {
        "length": CUT_OFF,
        "content_filter": "a refusal",
        "tool_calls": "a tool call",
        "function_call": "a tool call",
    }.get(str(ended))
    return Given(said, why, asked, answered)


def _weighed(logprobs: Any, choices: Sequence[str]) -> str | None:
    """Return {choice: log p} as JSON, from the most probable first tokens; None where none of them is a choice.

    Tokens that say the same ("A", " A") count together. A choice that is not among them is less probable than the last.
    """
    try:
        top = [(str(t["token"]).strip(), float(t["logprob"])) for t in logprobs["content"][0]["top_logprobs"]]
    except (LookupError, TypeError, ValueError):
        return None
    found = {choice: [p for token, p in top if token == choice] for choice in choices}
    if not any(found.values()):
        return None
    least = min(p for _, p in top)
    return json.dumps(
        {c: math.log(sum(map(math.exp, ps))) if any(p > -700 for p in ps) else least for c, ps in found.items()}
    )


def check_url(url: str, section: str = "synthesize") -> urllib.parse.SplitResult:
    """Return the address in parts; InputError where it is no http(s) one, or carries a password or a key."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        wrong = (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.port == 0
            or re.search(r"\s", url.strip())
        )
    except ValueError:  # a port or an IPv6 address that is none
        wrong = True
    if wrong:
        raise InputError(f'{section}.endpoint: "{clean(url)}" is no address such as http://localhost:8000/v1.')
    if parts.username or parts.password or clean(url) != url:
        raise InputError(
            f"{section}.endpoint: keep the key out of the address; name its environment variable in key_env."
        )
    return parts


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wait(attempt: int, asked: str | None) -> float:
    """Return the seconds to wait: what the server asks for (seconds, or a date), else twice as long each time, a little apart."""
    try:
        return min(max(float(asked or ""), 0.0), _LONGEST_WAIT)
    except ValueError:
        pass
    try:
        return min(max(parsedate_to_datetime(asked or "").timestamp() - time.time(), 0.0), _LONGEST_WAIT)
    except (ValueError, TypeError):
        return float(min(0.5 * 2**attempt, _LONGEST_WAIT) * (0.75 + random.random() / 2))


def _message(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read(10_000))
        found = found.get("error", found.get("detail", found.get("message", ""))) if isinstance(found, dict) else found
        if isinstance(found, dict):
            return clean(f"{found.get('message', '')} {found.get('code') or ''}".strip())[:300]
        return clean(str(found))[:300]
    except (ValueError, OSError, http.client.HTTPException):
        return str(error.reason)
