"""Requests to an endpoint: retries, refusals, the key, concurrency, and answers that survive an interruption."""

import json
import threading
import time

import pytest

from tunesmith.data.synthesis import _http
from tunesmith.data.synthesis._endpoint import Endpoint
from tunesmith.data.synthesis._http import check_url, given
from tunesmith.data.synthesis._journal import Journal
from tunesmith.data.synthesis._rounds import NoAnswer, Request, ask
from tunesmith.errors import InputError


def requests(n):
    return [Request(ask(f"q{i}"), 16, 0.5, i) for i in range(n)]


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "answers.jsonl", "m")


def test_answers_land_in_the_journal_under_what_was_asked(server, journal):
    endpoint = Endpoint(server.url + "/chat/completions", "m", None, 4, 5)
    endpoint.answer(requests(10), journal)
    assert [journal.get(r) for r in requests(10)] == [f"about q{i}" for i in range(10)]
    assert endpoint.tokens == {"asked": 30, "answered": 20}
    assert {k: server.bodies[0][k] for k in ("model", "max_tokens", "temperature")} == {
        "model": "m", "max_tokens": 16, "temperature": 0.5,
    }  # fmt: skip
    assert "Authorization" not in server.headers_seen[0]


def test_the_key_goes_into_the_header_and_nowhere_else(server, journal, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_KEY", "canary-0123")
    Endpoint(server.url, "m", "SOME_KEY", 1, 5).answer(requests(1), journal)
    assert server.headers_seen[0]["Authorization"] == "Bearer canary-0123"
    journal.close()
    assert "canary" not in (tmp_path / "answers.jsonl").read_text() + json.dumps(server.bodies)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(InputError, match="the environment variable SOME_KEY is not set"):
        Endpoint(server.url, "m", "SOME_KEY", 1, 5)


def test_it_waits_as_long_as_the_server_asks_and_tries_again(server, journal):
    waited, later = [], {"Retry-After": "0.05"}
    said = [(200, {}, b"no json"), (429, later, b"{}"), (503, later, b""), "at last"]
    server.reply = lambda body: waited.append(time.monotonic()) or said[len(waited) - 1]
    Endpoint(server.url, "m", None, 1, 5).answer(requests(1), journal)
    assert journal.get(requests(1)[0]) == "at last"
    assert min(waited[2] - waited[1], waited[3] - waited[2]) >= 0.05


def test_what_the_server_never_grants_is_one_sentence(server, journal, monkeypatch):
    monkeypatch.setattr(_http, "_wait", lambda attempt, asked: 0.0)
    server.reply = lambda body: (500, {}, b'{"error": {"message": "boom"}}')
    with pytest.raises(InputError, match=r"gave no answer in 6 tries \(500 boom\)"):
        Endpoint(server.url, "m", None, 1, 5).answer(requests(1), journal)
    server.reply = lambda body: (401, {}, b'{"error": {"message": "bad key"}}')
    with pytest.raises(InputError, match=r"refuses the request \(401 bad key\)"):
        Endpoint(server.url, "m", None, 1, 5).answer(requests(1), journal)
    with pytest.raises(InputError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", "m", None, 1, 5).answer(requests(1), journal)


def test_a_redirect_is_not_followed(server, journal, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "canary")
    server.reply = lambda body: (302, {"Location": server.url + "/elsewhere"}, b"")
    with pytest.raises(InputError, match="302"):
        Endpoint(server.url, "m", "SOME_KEY", 1, 5).answer(requests(1), journal)
    assert len(server.bodies) == 1


def test_as_many_at_once_as_allowed_and_no_more(server, journal):
    at_once, most, lock = [0], [0], threading.Lock()

    def reply(body):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.02)
        with lock:
            at_once[0] -= 1
        return "x"

    server.reply = reply
    Endpoint(server.url, "m", None, 4, 5).answer(requests(24), journal)
    assert most[0] == 4


def test_a_failure_half_way_keeps_what_was_answered(server, tmp_path):
    server.reply = lambda body: (403, {}, b"{}") if body["messages"][0]["content"] == "q5" else "fine"
    journal = Journal(tmp_path / "a.jsonl", "m")
    with pytest.raises(InputError):
        Endpoint(server.url, "m", None, 1, 5).answer(requests(10), journal)
    journal.close()
    kept = Journal(tmp_path / "a.jsonl", "m")
    assert [kept.get(r) is not None for r in requests(10)] == [True] * 5 + [False] * 5


def test_a_journal_cut_anywhere_is_whole_up_to_there(tmp_path):
    file = tmp_path / "j.jsonl"
    journal = Journal(file, "m")
    for request in requests(3):
        journal.keep(request, "ä\n" + request.messages[0][1])
    journal.close()
    content = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        again = Journal(file, "m")
        whole = sum(end <= cut for end in ends)
        assert [again.get(r) for r in requests(3)] == [f"ä\nq{i}" for i in range(whole)] + [None] * (3 - whole)
        again.keep(requests(3)[2], "new")
        assert again.get(requests(3)[2]) == ("ä\nq2" if whole == 3 else "new")  # the first answer counts
        again.close()


def test_another_model_or_sampling_is_another_answer(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", "m")
    journal.keep(requests(1)[0], "a")
    journal.close()
    assert Journal(tmp_path / "j.jsonl", "n").get(requests(1)[0]) is None
    assert Journal(tmp_path / "j.jsonl", "m").get(Request(ask("q0"), 16, 0.6, 0)) is None


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("dear diary\n")
    with pytest.raises(InputError, match="is no journal of answers"):
        Journal(file, "m")
    assert file.read_text() == "dear diary\n"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "file:///etc/passwd", "http://user:pw@host/v1"]
)
def test_addresses(url):
    with pytest.raises(InputError) as e:
        check_url(url)
    assert "pw" not in str(e.value)


@pytest.mark.parametrize("url", ["http://h:99999/v1", "http://[::1/v1", "http://h/v1?api_key=abc123", "http://h/a b"])
def test_addresses_that_are_wrong_in_their_details(url):
    with pytest.raises(InputError) as e:
        check_url(url)
    assert "abc123" not in str(e.value)


def test_a_query_stays_behind_the_path_and_out_of_the_name():
    http = _http.Http(check_url("http://[::1]:8/openai/?api-version=2024-10-21"), "m", None, 5)
    assert http.url == "http://[::1]:8/openai/chat/completions?api-version=2024-10-21"
    assert http.name == "m at http://[::1]:8/openai"


def test_a_key_that_fits_no_header_is_never_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sec\nret-canary")
    with pytest.raises(InputError, match="SOME_KEY holds is no key") as e:
        Endpoint("http://localhost:1", "m", "SOME_KEY", 1, 5)
    assert "canary" not in str(e.value)


def answered(content, ended="stop"):
    return {"choices": [{"message": {"content": content}, "finish_reason": ended}]}


def test_answers_that_are_none():
    assert given(answered("half a", "length")).why == "an answer cut off at max_tokens"
    assert given(answered("", "content_filter")).why == "a refusal"
    assert given(answered(None, "tool_calls")).why == "a tool call"
    assert (given(answered(None)).text, given(answered(None)).why) == ("", None)
    assert given(answered([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).text == "ab"
    for wrong in ({}, [], "x", {"choices": []}, {"choices": [{}]}, {"error": "no"}, None):
        with pytest.raises(ValueError, match="without choices"):
            given(wrong)


def test_a_request_that_is_refused_does_not_end_the_others(server, journal):
    too_long = (400, {}, b'{"error": {"message": "too long"}}')
    server.reply = lambda body: too_long if body["messages"][0]["content"] == "q0" else "fine"
    Endpoint(server.url, "m", None, 2, 5).answer(requests(4), journal)
    found = [journal.get(r) for r in requests(4)]
    assert found[1:] == ["fine"] * 3
    assert isinstance(found[0], NoAnswer)
    assert "refuses (400)" in str(found[0])


def test_all_refused_is_an_error_and_nothing_is_kept(server, journal):
    server.reply = lambda body: (400, {}, b'{"error": "no such option"}')
    with pytest.raises(InputError, match=r"refuses every request \(400 no such option\)"):
        Endpoint(server.url, "m", None, 2, 5).answer(requests(30), journal)
    assert len(server.bodies) < 15
    assert journal.file.read_text() == ""


def test_parameters_an_endpoint_does_not_have_are_sent_otherwise(server, journal):
    def reply(body):
        if "max_tokens" in body:
            return (
                400,
                {},
                b'{"error": {"message": "\'max_tokens\' is not supported. Use \'max_completion_tokens\'."}}',
            )
        return (422, {}, b'{"detail": "seed: extra inputs are not permitted"}') if "seed" in body else "fine"

    server.reply = reply
    Endpoint(server.url, "m", None, 1, 5).answer(requests(3), journal)
    assert [journal.get(r) for r in requests(3)] == ["fine"] * 3
    assert [("max_completion_tokens" in b, "seed" in b) for b in server.bodies] == [
        (False, True), (True, True), (True, False), (True, False), (True, False),
    ]  # fmt: skip


def test_an_answer_that_comes_drop_by_drop_has_an_end(server, journal, monkeypatch):
    monkeypatch.setattr(_http, "TRIES", 1)
    monkeypatch.setattr(_http.time, "monotonic", iter(range(0, 10_000, 100)).__next__)
    with pytest.raises(InputError, match="timed out"):
        Endpoint(server.url, "m", None, 1, 5).answer(requests(1), journal)


def test_this_machine_is_reached_without_a_proxy(server, journal, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Endpoint(server.url, "m", None, 1, 5).answer(requests(1), journal)
    assert journal.get(requests(1)[0]) == "about q0"


def test_an_interruption_does_not_wait_for_what_is_under_way(server, journal):
    free = threading.Event()
    server.reply = lambda body: "first" if body["messages"][0]["content"] == "q0" else str(free.wait(20))
    endpoint, began = Endpoint(server.url, "m", None, 4, 60), time.monotonic()

    def interrupted(request, answer, why):
        raise KeyboardInterrupt

    journal.keep = interrupted
    with pytest.raises(KeyboardInterrupt):
        endpoint.answer(requests(8), journal)
    assert not free.is_set()
    assert time.monotonic() - began < 15  # the server holds the others for 20 s
    free.set()


def test_two_processes_share_a_journal(tmp_path):
    one, other = Journal(tmp_path / "j", "m"), Journal(tmp_path / "j", "m")
    a, b, c = requests(3)
    one.keep(a, "1")
    other.keep(b, "2")
    other.keep(a, "late")
    one.keep(c, "3")
    for journal in (one, other, Journal(tmp_path / "j", "m")):
        assert [journal.get(r) for r in (a, b)] == ["1", "2"]
    assert (tmp_path / "j").read_text().count("\n") == 4
