"""A small OpenAI-compatible server whose answers a test writes as a function."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """`reply(body)` gives the answer's text, or (status, headers, bytes) to be sent as it is; `bodies` are what came."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies, self.headers_seen = [], []
        self.reply = lambda body: f"about {body['messages'][-1]['content']}"
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers_seen.append(dict(self.headers))
        said = self.server.reply(body)
        if isinstance(said, str):
            message = {
                "choices": [{"message": {"content": said}}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            }
            said = (200, {}, json.dumps(message).encode())
        status, headers, content = said
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    with Server() as s:
        threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True).start()
        yield s
        s.shutdown()
