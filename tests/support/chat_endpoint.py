"""An endpoint on this machine that speaks chat completions, answers by a script, and can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

SECRET = "sk-loopback-0123456789abcdef"
Entry = Any
"""(status, headers, response), or a callable that makes one of the body that was sent."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """An endpoint with a key, and no proxy on the way to it."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve_chat() as served:
        yield served


@contextmanager
def serve_chat() -> Iterator[SimpleNamespace]:
    """Serves the endpoint.

    Has its `url`, the `script` that it goes through (the last entry stays), and what it was
    `asked`: path, authorization, body. A status `hang` waits for as many seconds as the response
    says and closes the connection; a header `X-Drip` sends byte by byte, and `X-Cut` ends in the
    middle.
    """
    script: list[Entry] = []
    asked: list[tuple[str, str | None, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            entry = script.pop(0) if len(script) > 1 else script[0]
            status, headers, response = entry(body) if callable(entry) else entry
            if status == "hang":
                time.sleep(response)
                return
            content = response if isinstance(response, bytes) else json.dumps(response).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if headers.get("X-Cut"):
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif headers.get("X-Drip"):
                for byte in content:
                    time.sleep(0.05)
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        return
            else:
                self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{server.server_port}/v1", script=script, asked=asked
        )
    finally:
        server.shutdown()
        server.server_close()


def completion(message: dict[str, Any], usage: tuple[int, int] | None = (1000, 100)) -> Entry:
    """A response that holds a message; `usage` is the tokens that it tells, None for none."""
    found: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        found["usage"] = dict(zip(names, (*usage, sum(usage)), strict=True))
    return 200, {}, found


def says(text: str | None, **options: Any) -> Entry:
    """A response without a tool call."""
    return completion({"role": "assistant", "content": text}, **options)


def calls(*given: tuple[str, Any], **options: Any) -> Entry:
    """A response that calls tools: names and arguments, which may be text that is no JSON."""
    made = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for i, (name, arguments) in enumerate(given)
    ]
    return completion({"role": "assistant", "content": None, "tool_calls": made}, **options)


def last_result(body: dict[str, Any]) -> dict[str, Any]:
    """What the tool that ran last gave, of a conversation."""
    return json.loads([m for m in body["messages"] if m["role"] == "tool"][-1]["content"])


def by_turns(entries: Callable[[int, dict[str, Any]], Entry]) -> Entry:
    """Answers by how many responses are in the conversation so far, so that runs can repeat."""

    def answer(body: dict[str, Any]) -> Entry:
        turns = sum(message["role"] == "assistant" for message in body["messages"])
        return entries(turns, body)

    return answer
