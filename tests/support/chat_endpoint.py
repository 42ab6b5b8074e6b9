"""A chat completions endpoint on this machine that answers by a script, well or badly."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

SECRET = "sk-loopback-0123456789abcdef"


@pytest.fixture
def endpoint(monkeypatch):
    """A chat completions endpoint here that answers by a script, and what it was asked."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    script, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, headers, response = script.pop(0) if len(script) > 1 else script[0]
            if status == "hang":
                time.sleep(response)
                return
            if callable(response):
                status, headers, response = response(body)
            content = response if isinstance(response, bytes) else json.dumps(response).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if headers.get("X-Cut"):  # ends in the middle
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            if headers.get("X-Drip"):
                for byte in content:
                    time.sleep(0.05)
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        return
                return
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}/v1", script=script, asked=asked
    )
    server.shutdown()
    server.server_close()


def reply(text, tokens=None):
    """A chat completion; `tokens` are those of prompt and response, which it may tell."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if tokens is not None:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return 200, {}, body
