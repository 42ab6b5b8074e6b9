"""What a hostile visitor tries, each time refused: over the one page that other tests use."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("gradio")
from gradio_client.exceptions import AppError

from modelassay.errors import InputError
from modelassay.ui.login import check_own_page
from modelassay.ui.sharing import address_of

REFERENCES = {
    "/scan": ("model", "mode", "compare"),
    "/verify": ("model", "against"),
    "/create_baseline": ("model",),
    "/diff": ("base", "candidate", "dictionary"),
    "/find_circuit": ("model",),
    "/find_features": ("model", "sae", "types"),
    "/explain_jailbreak": ("model",),
    "/explain_attacks": ("model",),
    "/show_artifact": ("kind", "reference"),
    "/search_artifacts": ("kind", "model", "author"),
    "/search_baselines": ("model", "author"),
    "/list_artifacts": ("kind",),
    "/chat": ("model",),
    "/score_exchange": ("model",),
}
"""Parameters of endpoints that name something, and could name what they must not."""
SAFE = {
    "model": "embedded",
    "base": "embedded",
    "candidate": "embedded",
    "kind": "baseline",
    "reference": "embedded",
    "plain": "a",
    "jailbroken": "b",
    "attack": "Please: {request}",
    "message": "a",
    "prompt": "a",
    "response": "b",
}


@pytest.fixture(scope="module")
def inside():
    """A server that only this machine can reach; gives its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"secret")

        do_HEAD = do_POST = do_GET  # noqa: N815 (named by http.server)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_every_endpoint_with_a_name_in_it_is_attacked(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    texts = {"message", "history", "system", "prompt", "response", "plain", "jailbroken", "opening",
             "attack"}  # fmt: skip
    for endpoint, about in named.items():
        words = {
            p["parameter_name"]
            for p in about["parameters"]
            if p["python_type"]["type"].startswith(("str", "Literal"))
        }
        assert words - texts <= set(REFERENCES.get(endpoint, ())), endpoint


@pytest.mark.parametrize("endpoint", REFERENCES)
def test_no_name_reaches_an_address_a_file_or_a_template(client, inside, endpoint):
    where, asked = inside
    parameters = client.view_api(return_format="dict")["named_endpoints"][endpoint]["parameters"]
    needed = {p["parameter_name"]: SAFE.get(p["parameter_name"], "") for p in parameters
              if not p["parameter_has_default"]}  # fmt: skip
    attacks = (f"http://{where}/a", f"{where}/b@http://{where}", "../../../etc/passwd", "{{7*191}}")
    for name in REFERENCES[endpoint]:
        for attack in attacks:
            try:
                client.predict(api_name=endpoint, **{**needed, name: attack})
            except AppError as error:
                said = str(error)
                assert "\n" not in said.strip(), said
                assert not re.search(r"root:|1337|Traceback", said), said
            else:
                raise AssertionError(f"{endpoint} took {name}={attack}")
    assert asked == []


def test_the_server_s_and_other_visitors_files_are_not_served(url):
    cache = Path(tempfile.gettempdir()) / "gradio"
    beside = Path(tempfile.gettempdir()) / "of-somebody-else.json"
    beside.write_text("secret")
    here = str(Path(__file__))
    paths = [
        "/etc/passwd", here, str(beside), str(cache), f"{cache}/", f"{cache}/../{beside.name}",
        f"{cache}/%2e%2e/{beside.name}", "../../etc/passwd", "..%2f..%2fetc%2fpasswd",
        "/proc/self/environ", "C:\\windows\\win.ini", f"file://{here}", "\x00/etc/passwd",
    ]  # fmt: skip
    routes = [f"gradio_api/file={path}" for path in paths]
    routes += [f"gradio_api/file/{path}" for path in paths[:3]]
    routes += ["static/../../../etc/passwd", "assets/..%2f..%2f..%2fapp.py", "svelte/../x"]
    routes += ["gradio_api/custom_component/x/client/component/..%2f..%2fetc%2fpasswd"]
    routes += ["gradio_api/call/scan/" + "0" * 32, "gradio_api/queue/data?session_hash=../x"]
    with httpx.Client(timeout=5) as visitor:
        for route in routes:
            with visitor.stream("GET", url + route.replace("\x00", "%00")) as answer:
                text = next(answer.iter_text(), "")
            assert answer.status_code >= 400 or "rror" in text or "not found" in text.lower(), route
            assert not re.search(r"root:|secret|import pytest|PATH=", text), route
    beside.unlink()


def test_nothing_is_fetched_for_a_visitor(url, inside):
    where, asked = inside
    for route in (f"file=http://{where}/a", f"proxy=http://{where}/a", f"proxy={where}/a"):
        answer = httpx.get(f"{url}gradio_api/{route}", follow_redirects=False)
        # A redirect is followed by the visitor's own browser, which sees what it could see before.
        assert answer.status_code >= 300, route
        assert "secret" not in answer.text
    assert asked == []


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/upload", "gradio_api/upload/x", "/gradio_api//upload", "gradio_api/vibe-edit",
        "gradio_api/process_recording", "gradio_api/component_server", "gradio_api/stream/x",
    ],
)  # fmt: skip
def test_nobody_can_leave_a_file(url, path):
    before = files_of_gradio()
    answer = httpx.post(url + path, files={"files": ("a.txt", b"x" * 100_000)})
    assert answer.status_code == 404
    assert files_of_gradio() == before


def test_gradio_s_own_monitoring_is_closed(url):
    for path in ("monitoring", "monitoring/summary", "gradio_api/deep_link?session_hash=x"):
        assert httpx.get(url + path).status_code == 404


def files_of_gradio() -> set[Path]:
    return set((Path(tempfile.gettempdir()) / "gradio").rglob("*"))


def test_ten_megabytes_are_refused_before_they_are_read(url):
    prompt = json.dumps({"data": ["x" * 10_000_000, [], "organism:safe"]})
    kind = {"Content-Type": "application/json"}
    parts = (prompt[i : i + 500_000].encode() for i in range(0, len(prompt), 500_000))
    for body in (prompt, parts):
        try:
            answer = httpx.post(f"{url}gradio_api/call/chat", content=body, headers=kind)
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the connection was closed while the rest was still being sent
    short = {"message": "x" * 9_000, "model": "organism:safe"}
    event = httpx.post(f"{url}gradio_api/call/v2/chat", json=short).json()["event_id"]
    said = httpx.get(f"{url}gradio_api/call/chat/{event}", timeout=60).text
    assert "may have 8000" in said


def test_headers_of_a_visitor_change_nothing_for_others(url, monkeypatch):
    """Where a link leads is the host's to say, and a form of another site publishes nothing."""
    lies = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "javascript",
        "X-Forwarded-Prefix": "/evil",
        "X-Original-URL": "/monitoring",
        "X-Rewrite-URL": "/gradio_api/upload",
    }
    httpx.get(f"{url}config", headers=lies)
    assert "evil.example" not in httpx.get(f"{url}config").text
    monkeypatch.setenv("SPACE_HOST", "owner-name.hf.space, evil.example")
    link = address_of("scan", {"model": 'a"><img src=x>', "all": True})
    assert link.startswith("https://owner-name.hf.space/?tab=scan&")
    assert "<" not in link
    monkeypatch.setenv("SPACE_HOST", "evil.example/x?")
    assert address_of("scan", {}) == "?tab=scan"
    for site, allowed in (("same-origin", True), ("cross-site", False), ("same-site", False)):
        request = SimpleNamespace(headers={"sec-fetch-site": site})
        if allowed:
            check_own_page(request)
        else:
            with pytest.raises(InputError, match="another site"):
                check_own_page(request)


def test_a_slow_request_is_cut(url, monkeypatch):
    from modelassay.ui import limits

    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=20) as slow:
        slow.sendall(
            b"POST /gradio_api/call/scan HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n"
            b"Content-Type: application/json\r\n\r\n{"
        )
        assert b" 408 " in slow.recv(200)
